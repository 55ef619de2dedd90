"""A person's directory in and out of the store."""
