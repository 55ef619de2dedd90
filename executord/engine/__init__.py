"""The container engine: everything that is known about talking to it is in this package."""
