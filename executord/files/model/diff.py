"""What differs between two trees, walking only the directories whose digests differ."""

from collections.abc import Iterator

from executord.core.run import ChangeKind
from executord.files.model.trees import EMPTY_TREE, Entry, TreeSource
from executord.ports import FileChange


def diff(source: TreeSource, before: str, after: str) -> Iterator[FileChange]:
    """By path, in no promised order. An empty directory that comes or goes is named with a final
    slash; other directories are told by what is in them. Raises the source's faults.
    """
    pending = [("", before, after)]
    while pending:
        path, old_digest, new_digest = pending.pop()
        if old_digest == new_digest:
            continue
        old = {entry.name: entry for entry in source.tree(old_digest)}
        new = {entry.name: entry for entry in source.tree(new_digest)}
        for name, entry in new.items():
            was = old.pop(name, None)
            if was != entry:
                yield from _compare(f"{path}{name}", was, entry, pending)
        for name, was in old.items():
            yield from _compare(f"{path}{name}", was, None, pending)


def _compare(
    path: str, old: Entry | None, new: Entry | None, pending: list[tuple[str, str, str]]
) -> Iterator[FileChange]:
    if old is not None and new is not None and old.content == new.content:
        return
    old_directory = old is not None and old.is_directory
    new_directory = new is not None and new.is_directory
    if old_directory or new_directory:
        pending.append((f"{path}/", _below(old), _below(new)))
    if old is not None and new is not None and not old_directory and not new_directory:
        yield _change(path, "changed", new)
    elif old is not None and not old_directory:
        yield _change(path, "deleted", old)
    if new is not None and not new_directory and (old is None or old_directory):
        yield _change(path, "added", new)
    if old_directory and new is None and _below(old) == EMPTY_TREE:
        yield FileChange(path=f"{path}/", kind="deleted")
    if new_directory and old is None and _below(new) == EMPTY_TREE:
        yield FileChange(path=f"{path}/", kind="added")


def _below(entry: Entry | None) -> str:
    return entry.digest if entry is not None and entry.is_directory else EMPTY_TREE


def _change(path: str, kind: ChangeKind, entry: Entry) -> FileChange:
    size = 0 if kind == "deleted" else entry.size
    return FileChange(path=path, kind=kind, size_bytes=size)
