"""S2DS, the data server of a gateway node: it owns ports, capacity and credentials, and forwards bytes."""
