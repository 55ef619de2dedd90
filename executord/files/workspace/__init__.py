"""A run's working directory: made, read, kept."""
