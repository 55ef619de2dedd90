"""
What the benchmarks compare with, where it is not here yet.

    python -m tests.setup.peers
"""

from __future__ import annotations

import shutil
import sys

from tests.setup.apt import install
from tests.setup.state import carry_out

PEERS = ("rsync",)


def install_peers() -> int:
    missing = [name for name in PEERS if shutil.which(name) is None]
    if missing:
        install(missing)
    return 0


if __name__ == "__main__":
    sys.exit(carry_out(install_peers))
