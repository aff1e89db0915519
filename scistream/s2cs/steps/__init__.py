"""What the machine of a stream at an S2CS does at each input, by subject."""
