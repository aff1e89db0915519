"""The data path of one buffer-and-forward element: sockets in, sockets out."""
