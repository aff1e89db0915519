"""S2DS, the data server of a gateway node: owns ports, capacity and credentials, and forwards bytes."""
