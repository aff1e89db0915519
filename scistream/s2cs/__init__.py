"""S2CS, the control server of a facility: keeps the streams' records and commands its gateways."""
