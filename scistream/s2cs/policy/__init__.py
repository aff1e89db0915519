"""Who may do what at this facility."""
