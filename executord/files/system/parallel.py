"""The same work for many items, in as many threads as the store gains from."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

from executord.files.system.idle_work import helpers_join

_Item = TypeVar("_Item")
_Done = TypeVar("_Done")


def side_by_side(
    threads: int, items: Sequence[_Item], work: Callable[[_Item], _Done]
) -> Iterator[tuple[_Item, _Done]]:
    """In no promised order; in the caller's own thread where one is enough. The first error ends
    it, after the items under way.
    """
    if threads <= 1 or len(items) <= 1:
        for item in items:
            yield item, work(item)
        return
    pool = ThreadPoolExecutor(
        min(threads, len(items)), thread_name_prefix="files-many", initializer=helpers_join()
    )
    under_way: dict[Future[_Done], _Item] = {}
    try:
        for item in items:
            under_way[pool.submit(work, item)] = item
            if len(under_way) >= 2 * threads:
                yield from _finished(under_way)
        while under_way:
            yield from _finished(under_way)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _finished(under_way: dict[Future[_Done], _Item]) -> Iterator[tuple[_Item, _Done]]:
    done, _ = wait(under_way, return_when=FIRST_COMPLETED)
    for future in done:
        yield under_way.pop(future), future.result()
