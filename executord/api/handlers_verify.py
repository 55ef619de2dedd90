"""Checking the file cache, now: as one answer, or as a stream that shows how far it is."""

from collections.abc import AsyncIterator

from executord.api import answers_verify as v
from executord.api.calls import Call, Follow, Item, Reply, closing
from executord.api.shown import encode
from executord.api.wire import VerifyQuery, VerifyWanted
from executord.ports import Progress, VerifyReport


async def verify(call: Call[VerifyQuery, VerifyWanted]) -> Reply | Follow:
    """The stream is given up when its reader leaves; what was asked for as one answer is not."""
    steps = call.services.files.verify(repair=call.body.repair)
    if call.query.follow:
        return Follow(_stream(steps))
    report: VerifyReport | None = None
    async with closing(steps):
        async for step in steps:
            if isinstance(step, VerifyReport):
                report = step
    assert report is not None
    return Reply(body=_report(report))


async def _stream(steps: AsyncIterator[Progress | VerifyReport]) -> AsyncIterator[Item]:
    async with closing(steps):
        async for step in steps:
            if isinstance(step, VerifyReport):
                yield Item("report", "", encode(_report(step)))
            else:
                yield Item("progress", "", encode(_progress(step)))


def _progress(step: Progress) -> v.VerifyProgress:
    return v.VerifyProgress(
        what=step.what,
        files_done=step.files_done,
        files_total=step.files_total,
        bytes_done=step.bytes_done,
        bytes_total=step.bytes_total,
    )


def _report(report: VerifyReport) -> v.VerifyAnswer:
    return v.VerifyAnswer(
        good=report.is_good,
        snapshots=report.snapshots,
        blobs=report.blobs,
        trees=report.trees,
        revisions=report.revisions,
        bytes_read=report.bytes_read,
        seconds=report.seconds,
        damaged=report.damaged,
        mended=report.mended,
        objects=[
            v.DamagedAnswer(
                kind=found.kind,
                digest=found.digest,
                what=found.what.encode(errors="replace").decode(),
                mended=found.mended,
                trees=list(found.trees),
                runs=list(found.runs),
                why_not=found.why_not,
            )
            for found in report.objects
        ],
        skipped=list(report.skipped),
    )
