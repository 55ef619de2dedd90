"""What projects are made of: digests, trees, revisions, and what follows from them."""
