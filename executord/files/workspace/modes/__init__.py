"""The ways to make a run's working directory, and which of them work on this node."""
