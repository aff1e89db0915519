"""What `s2uc probe` measures between two gateways, and how a connection that fails is diagnosed."""
