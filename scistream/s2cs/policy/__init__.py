"""The policy of a facility: its rules, the identities they apply to, and the decisions on commands."""
