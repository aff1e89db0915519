"""S2CS, the control server of a facility: it keeps the records of streams and commands the gateways."""
