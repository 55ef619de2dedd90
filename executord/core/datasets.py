"""Names of the volumes that hold a run's mounted revisions, and whose they are."""

import re

_NAME = re.compile(r"executord-([0-9a-f]+)\.d[0-9]+-(.+)", re.DOTALL)


def volume_name(instance: str, run_id: str, index: int) -> str:
    """The index stands in front: behind the run's id it could be a part of another run's id."""
    return f"executord-{instance}.d{index}-{run_id}"


def run_of_volume(instance: str, volume: str) -> str:
    """The run's id; "" for a volume that is no dataset of this node's."""
    found = _NAME.fullmatch(volume)
    return found[2] if found and found[1] == instance else ""
