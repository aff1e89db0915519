"""The database of an S2CS: records of streams, usage accounting, and the commands that read them."""
