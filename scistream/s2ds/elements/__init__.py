"""Buffer-and-forward elements: their processes, and what the gateway tells them."""
