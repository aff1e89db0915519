"""The optional certificate tool: an authority, its register, enrolment and revocation."""
