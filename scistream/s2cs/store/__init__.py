"""What an S2CS keeps on disk: streams, books, and the tools that look at them."""
