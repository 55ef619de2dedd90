"""What an overlay of directories shows, without mounting it."""

from collections.abc import Sequence
from pathlib import Path

from executord.files.cache.merged_view import MergedView


def shown(lowers: Sequence[Path]) -> dict[str, str]:
    """In the form of `files.contents`; `lowers` have the top one first."""
    found: dict[str, str] = {}

    def look(view: MergedView, path: str) -> None:
        for name, seen in sorted(view.listing().items()):
            here = f"{path}{name}"
            real = lowers[seen.layer] / here
            if real.is_symlink():
                found[here] = f"-> {real.readlink()}"
            elif real.is_dir():
                found[f"{here}/"] = ""
                view.enter(name)
                look(view, f"{here}/")
                view.leave()
            else:
                found[here] = real.read_bytes().decode(errors="surrogateescape")

    with MergedView(lowers) as view:
        look(view, "")
    return found
