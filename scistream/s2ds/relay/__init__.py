"""The data path of one buffer-and-forward element, from socket to socket."""
