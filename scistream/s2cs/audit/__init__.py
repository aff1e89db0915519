"""The audit trail: its events, when they are written, and where."""
