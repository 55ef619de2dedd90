"""What is written beside a snapshot or layer about it, compared with the tree it was made from.

A wrong record never gives a run wrong bytes; it would let eviction count wrongly, or forget trees
that are still needed.
"""

import struct
from bisect import bisect_left

from executord.files.cache.grounds import About, Ground
from executord.files.cache.snapshots import Snapshots
from executord.files.cache.tree_check import TreeCheck, mark_of


def records_are_right(snapshots: Snapshots, ground: Ground, about: About, check: TreeCheck) -> bool:
    """`check` has walked the whole tree. False also where they cannot be read."""
    files = sorted(check.files)
    try:
        trees = set(snapshots.trees_of(ground))
        for key, size in snapshots.blobs_of(ground):
            mark = mark_of(key, size)
            at = bisect_left(files, mark)
            if at == len(files) or files[at] != mark:
                return False
    except (OSError, ValueError, struct.error):
        return False
    return trees == check.trees if about.ground_below is None else trees <= check.trees
