"""SciStream: memory-to-memory streams between facilities, through gateways at their edges."""

__version__ = "0.1.0"
