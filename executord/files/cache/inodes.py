"""A set of inode numbers, a bit each: a million neighbours take some hundred KiB."""

import threading

_PAGE_BITS = 12
_PAGE_BYTES = (1 << _PAGE_BITS) // 8
_IN_PAGE = (1 << _PAGE_BITS) - 1


class Inodes:
    """Any thread may ask and change it."""

    def __init__(self) -> None:
        self._pages: dict[int, bytearray] = {}
        self._lock = threading.Lock()

    def __contains__(self, inode: int) -> bool:
        page = self._pages.get(inode >> _PAGE_BITS)
        at = inode & _IN_PAGE
        return page is not None and bool(page[at >> 3] & (1 << (at & 7)))

    def add(self, inode: int) -> None:
        at = inode & _IN_PAGE
        with self._lock:
            page = self._pages.get(inode >> _PAGE_BITS)
            if page is None:
                page = self._pages[inode >> _PAGE_BITS] = bytearray(_PAGE_BYTES)
            page[at >> 3] |= 1 << (at & 7)

    def discard(self, inode: int) -> None:
        at = inode & _IN_PAGE
        with self._lock:
            page = self._pages.get(inode >> _PAGE_BITS)
            if page is not None:
                page[at >> 3] &= ~(1 << (at & 7)) & 0xFF
