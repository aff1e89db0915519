"""S2UC, the user client: asks two facilities for a stream and holds it together."""
