"""What operators look up: the example files, the JSON Schema of each configuration file, and the list of settings."""
