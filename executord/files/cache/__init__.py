"""What the node keeps of it: blobs, snapshots, and their limits."""
