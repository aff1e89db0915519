"""S2UC, the user's client: it requests a stream from two facilities and sets up the path between them."""
