"""Images of environments: found, fetched or built, and each of it once at a time."""
