"""The control protocol on the wire: messages, lines, links. No party's own logic lives here."""
