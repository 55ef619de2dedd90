"""What the standard library lacks: disks, directories that are traps, threads."""
