"""Buffer-and-forward elements: their processes, commands and shared figures."""
