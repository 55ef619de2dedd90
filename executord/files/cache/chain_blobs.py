"""Whether any ground of a chain links to a blob."""

from collections.abc import Sequence
from contextlib import ExitStack, closing
from types import TracebackType
from typing import Self

from executord.files.cache.blobs import BlobKey
from executord.files.cache.grounds import Ground
from executord.files.cache.records import GROUPED, RecordsLookup
from executord.files.cache.snapshots import Snapshots


class ChainBlobs:
    """Opens the records when first asked. "Yes" also where it cannot be known. Raises OSError."""

    def __init__(self, snapshots: Snapshots, chain: Sequence[Ground]) -> None:
        self._snapshots = snapshots
        self._chain = chain
        self._stack = ExitStack()
        self._lookups: list[RecordsLookup] | None = None
        self._unsure = False

    def hold(self, key: BlobKey) -> bool:
        if self._lookups is None:
            self._lookups = self._open()
        return self._unsure or any(key in lookup for lookup in self._lookups)

    def _open(self) -> list[RecordsLookup]:
        abouts = self._snapshots.grounds()
        self._unsure = any(
            ground not in abouts or abouts[ground].records < GROUPED for ground in self._chain
        )
        if self._unsure:
            return []
        return [
            self._stack.enter_context(closing(RecordsLookup(self._snapshots.records_path(ground))))
            for ground in self._chain
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()
