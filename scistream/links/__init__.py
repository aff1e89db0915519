"""Control links: Twisted protocols that carry messages, and what admits, repeats and redials them."""
