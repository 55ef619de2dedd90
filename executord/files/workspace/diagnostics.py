"""`dominostats.json`: what a run tells of itself, if it is a small JSON object."""

from collections.abc import Mapping

import msgspec

from executord.files.model.trees import TreeSource
from executord.files.system.directories import Cursor, read_small
from executord.files.workspace.changed import Changed
from executord.files.workspace.changes import Merged

DIAGNOSTICS = "dominostats.json"
MAX_DIAGNOSTICS_BYTES = 64 << 10


def read_diagnostics(
    changed: Changed, merged: Merged, base_tree: str, source: TreeSource
) -> Mapping[str, object] | None:
    """Only what this run wrote itself; anything but a JSON object is left to the file's reader."""
    if not changed.wrote(DIAGNOSTICS, base_tree, source):
        return None
    with Cursor(changed.top) as cursor:
        data = read_small(cursor.fd, DIAGNOSTICS, MAX_DIAGNOSTICS_BYTES)
    if data is None:
        merged.skip(DIAGNOSTICS, f"not read, larger than {MAX_DIAGNOSTICS_BYTES} bytes")
        return None
    try:
        value = msgspec.json.decode(data, type=dict[str, object])
        msgspec.json.encode(value)
    except (msgspec.MsgspecError, RecursionError, OverflowError, UnicodeError, ValueError):
        merged.skip(DIAGNOSTICS, "not read, it is no JSON object")
        return None
    return value
