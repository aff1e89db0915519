"""The HTTP listener of the daemons: health, metrics, and at an S2CS the status page."""
