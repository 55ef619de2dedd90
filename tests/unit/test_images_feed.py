"""Output and progress of shared work reach every follower, early or late, fast or slow."""

import asyncio

from executord.images.feed import Feed
from executord.ports import Progress


class Follower:
    def __init__(self) -> None:
        self.output = b""
        self.progress: list[Progress] = []

    async def on_output(self, data: bytes) -> None:
        self.output += data

    def on_progress(self, progress: Progress) -> None:
        self.progress.append(progress)


async def test_a_late_follower_gets_all_output_and_the_latest_progress() -> None:
    feed, follower = Feed(), Follower()
    feed.output(b"one ")
    feed.progress(Progress(what="build", step=1))
    feed.progress(Progress(what="build", step=2))
    following = asyncio.create_task(feed.follow(follower.on_output, follower.on_progress))
    await asyncio.sleep(0.01)
    feed.output(b"two")
    feed.end()
    await following
    assert follower.output == b"one two"
    assert [progress.step for progress in follower.progress] == [2]


async def test_following_what_is_over_returns_at_once() -> None:
    feed, follower = Feed(), Follower()
    feed.output(b"all")
    feed.end()
    await feed.follow(follower.on_output, follower.on_progress)
    assert follower.output == b"all"


async def test_a_follower_that_is_too_slow_is_told_what_it_missed() -> None:
    feed, follower = Feed(), Follower()
    for number in range(60):
        feed.output(bytes([number]) * 100_000)
    feed.end()
    await feed.follow(follower.on_output, follower.on_progress)
    note, _, rest = follower.output.partition(b"\n")
    missed = int(note.split()[0].strip(b"["))
    assert missed + len(rest) == 6_000_000
    assert rest.endswith(bytes([59]) * 100_000)
    assert len(rest) <= 4 * 1024 * 1024


async def test_output_that_comes_while_a_follower_is_busy_is_not_lost() -> None:
    feed, follower = Feed(), Follower()

    async def slowly(data: bytes) -> None:
        await asyncio.sleep(0.01)
        await follower.on_output(data)

    following = asyncio.create_task(feed.follow(slowly, follower.on_progress))
    for number in range(10):
        feed.output(str(number).encode())
        await asyncio.sleep(0.003)
    feed.end()
    await following
    assert follower.output == b"0123456789"


async def test_the_beginning_is_announced_before_anything_else_and_once() -> None:
    feed, follower = Feed(), Follower()
    said: list[str] = []

    async def on_begin() -> None:
        said.append(f"begun after {len(follower.progress)}")

    following = asyncio.create_task(feed.follow(follower.on_output, follower.on_progress, on_begin))
    await asyncio.sleep(0.01)
    assert said == []
    feed.progress(Progress(what="pull"))
    await asyncio.sleep(0.01)
    feed.output(b"x")
    feed.end()
    await following
    assert said == ["begun after 0"]
