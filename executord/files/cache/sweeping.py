"""The parts that keep the cache within its limits, put together."""

from executord.files.cache.accounting import Accounting
from executord.files.cache.blobs import Blobs
from executord.files.cache.layout import Layout
from executord.files.cache.objects import Revisions, Trees
from executord.files.cache.remembered import Remembered
from executord.files.cache.snapshots import Snapshots
from executord.files.cache.sweeper import Limits, Sweeper
from executord.files.cache.trace import TraceLog
from executord.files.cache.trash import Trash
from executord.files.cache.uses import Uses


def make_sweeper(
    *,
    layout: Layout,
    limits: Limits,
    blobs: Blobs,
    snapshots: Snapshots,
    trees: Trees,
    revisions: Revisions,
) -> Sweeper:
    """Nothing is read before its `accounting` is opened."""
    remembered = Remembered()
    return Sweeper(
        layout=layout,
        limits=limits,
        blobs=blobs,
        snapshots=snapshots,
        trees=trees,
        revisions=revisions,
        accounting=Accounting(layout, blobs, snapshots, remembered),
        uses=Uses(remembered, snapshots, TraceLog(layout.root)),
        trash=Trash(layout),
        remembered=remembered,
    )
