"""The audit trail: events, where they are written, and when."""
