"""The store that nodes and clients share."""
