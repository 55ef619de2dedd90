"""From the store to the node: shared, resumed, bounded, and never wrong."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from executord.core.reasons import FaultError, Reason
from executord.files import faults
from executord.files.cache.blobs import BlobKey, Blobs
from executord.files.cache.layout import Layout
from executord.files.cache.objects import Revisions, Trees
from executord.files.faults import CancelledWorkError
from executord.files.model import digests
from executord.files.progress import Counter
from executord.files.store import downloads
from executord.files.store.bucket import Bucket, Upload, open_bucket
from executord.files.store.directory_bucket import DirectoryBucket
from executord.files.store.store import NewBlob, Store
from executord.files.store.transfer import Fetcher
from executord.files.store.unpackers import PackSpan, UnpackerError, Unpackers
from executord.files.store.watched_bucket import WatchedBucket
from tests.fakes.files import USER
from tests.fakes.s3 import BUSY, BadNetwork, new_bucket, options, s3_server

LARGE = os.urandom(1 << 20) * 20
NEVER = threading.Event()


def small(count: int) -> list[bytes]:
    return [b"small %d " % n * (n % 50 + 1) for n in range(count)]


@dataclass
class Node:
    blobs: Blobs
    fetcher: Fetcher

    def content(self, data: bytes) -> bytes:
        return Path(self.blobs.path(key_of(data))).read_bytes()

    def fetch(self, *contents: bytes, cancelled: threading.Event = NEVER) -> Counter:
        counter = Counter("fetching", None)
        wanted = {key_of(data): len(data) for data in contents}
        self.fetcher.blobs(wanted, counter, cancelled)
        return counter


def key_of(data: bytes) -> BlobKey:
    return BlobKey(digests.of_bytes(data), executable=False)


def node(tmp_path: Path, bucket: Bucket, name: str = "node") -> Node:
    layout = Layout(tmp_path / name)
    layout.make()
    blobs = Blobs(layout, USER)
    blobs.load()
    store = Store("test:", bucket, packs_home=tmp_path / name / "packs-v1")
    fetcher = Fetcher(
        store=store,
        blobs=blobs,
        trees=Trees(layout.trees),
        revisions=Revisions(layout.revisions),
    )
    return Node(blobs, fetcher)


def sent(bucket: Bucket, *contents: bytes) -> None:
    blobs = [
        NewBlob(digests.of_bytes(data), len(data), lambda data=data: iter((data,)))  # type: ignore[misc]
        for data in contents
    ]
    Store("test:", bucket).put_blobs(blobs, lambda _: None)


def loose(tmp_path: Path, data: bytes) -> Path:
    name = digests.of_bytes(data).removeprefix(digests.PREFIX)
    return tmp_path / "store/blobs" / name[:2] / name


def fault(work: Callable[[], object]) -> FaultError:
    with pytest.raises(FaultError) as caught:
        work()
    return caught.value


@pytest.fixture
def bucket(tmp_path: Path) -> DirectoryBucket:
    return DirectoryBucket(tmp_path / "store", create=True)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture
def network(endpoint: str) -> Iterator[BadNetwork]:
    proxy = BadNetwork(endpoint)
    yield proxy
    proxy.close()


@pytest.fixture
def far(endpoint: str, network: BadNetwork) -> Bucket:
    return open_bucket(f"s3://{new_bucket(endpoint)}", options(network.url))


# -- small ones ----------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [10, 300, 3000])
def test_small_blobs_arrive_whether_loose_packed_or_unpacked_by_other_processes(
    tmp_path: Path, bucket: DirectoryBucket, count: int
) -> None:
    assert downloads.WORTH_A_PROCESS < 3000
    contents = small(count)
    sent(bucket, *contents)
    here = node(tmp_path, bucket)
    counter = here.fetch(*contents, b"")
    assert [here.content(data) for data in contents] == contents
    assert here.content(b"") == b""
    assert (counter.files, counter.bytes) == (count + 1, sum(map(len, contents)))
    assert list((tmp_path / "node/tmp").iterdir()) == []
    assert here.blobs.count == count + 1
    here.fetcher.close()


def test_what_an_unpacking_process_finds_damaged_is_looked_for_elsewhere(
    tmp_path: Path, bucket: DirectoryBucket
) -> None:
    contents = small(3000)
    sent(bucket, *contents)
    (pack,) = (tmp_path / "store/packs/data").rglob("*/*")
    good = pack.read_bytes()
    at = good.index(contents[1500])
    pack.write_bytes(good[:at] + b"X" + good[at + 1 :])
    here = node(tmp_path, bucket)
    error = fault(lambda: here.fetch(*contents))
    assert error.fault.reason is Reason.FILES_CORRUPT
    assert pack.name in error.fault.detail
    assert list((tmp_path / "node/tmp").iterdir()) == []
    path = loose(tmp_path, contents[1500])
    path.parent.mkdir(parents=True)
    path.write_bytes(contents[1500])
    here.fetch(*contents)
    assert [here.content(data) for data in contents] == contents
    here.fetcher.close()


def test_an_unpacking_process_that_is_killed_costs_nothing_but_time(
    tmp_path: Path, bucket: DirectoryBucket
) -> None:
    contents = small(6000)
    sent(bucket, *contents)
    here = node(tmp_path, bucket)
    here.fetch(*contents[:2500])
    for process in here.fetcher._downloads._unpackers._idle:
        process.kill()
    here.fetch(*contents)
    assert [here.content(data) for data in contents] == contents
    here.fetcher.close()


def _helpers() -> list[psutil.Process]:
    return [
        process
        for process in psutil.Process().children()
        if any("unpack.py" in word for word in process.cmdline())
    ]


class StuckBucket(DirectoryBucket):
    """Another process that opens one of its packs waits for ever."""

    def path_of(self, key: str) -> str | None:
        assert key.startswith("packs/data/")
        return str(self._root.parent / "fifo")


def test_unpacking_processes_that_are_killed_at_work_cost_nothing_but_time(tmp_path: Path) -> None:
    bucket = StuckBucket(tmp_path / "store", create=True)
    os.mkfifo(tmp_path / "fifo")
    contents = small(3000)
    sent(bucket, *contents)
    here = node(tmp_path, bucket)
    here.fetch(contents[0])  # from now on it knows the pack
    killed: set[int] = set()
    done = threading.Event()

    def kill() -> None:
        while not done.wait(0.01):
            for process in _helpers():
                process.kill()
                killed.add(process.pid)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        here.fetch(*contents)
    finally:
        done.set()
        killer.join()
    assert killed
    assert [here.content(data) for data in contents] == contents
    assert list((tmp_path / "node/tmp").iterdir()) == []
    here.fetcher.close()


def test_a_pack_that_is_no_file_is_told_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pack")  # opening it like a file would wait for somebody who writes to it
    span = PackSpan(str(tmp_path / "pack"), 0, 1)
    helpers = Unpackers(stall_seconds=10.0)
    with pytest.raises(UnpackerError, match="Invalid argument"):
        helpers.unpack(
            span, tmp_path, owner=USER, objects=[(0, 1, bytes(32), "a", 0o644)], cancelled=NEVER
        )
    helpers.close()


@pytest.mark.parametrize("objects", [1, 5_000])  # more than a pipe holds
def test_an_unpacking_process_that_hangs_is_given_up(tmp_path: Path, objects: int) -> None:
    (tmp_path / "pack").write_bytes(b"x")
    span = PackSpan(str(tmp_path / "pack"), 0, 1)
    wanted = [(0, 1, bytes(32), f"{n:064}", 0o644) for n in range(objects)]
    helpers = Unpackers(stall_seconds=0.5)

    def ask_one_that_hangs(cancelled: threading.Event) -> None:
        helpers.unpack(span, tmp_path, owner=USER, objects=[], cancelled=NEVER)
        (idle,) = helpers._idle
        os.kill(idle.pid, signal.SIGSTOP)
        helpers.unpack(span, tmp_path, owner=USER, objects=wanted, cancelled=cancelled)

    with pytest.raises(UnpackerError, match="silent"):
        ask_one_that_hangs(NEVER)
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(CancelledWorkError):
        ask_one_that_hangs(cancelled)
    assert _helpers() == []
    assert helpers.unpack(span, tmp_path, owner=USER, objects=wanted, cancelled=NEVER) == (
        [0] * objects
    )
    helpers.close()


def test_the_same_content_as_file_and_program_is_read_once(
    tmp_path: Path, bucket: DirectoryBucket
) -> None:
    contents = small(50)
    sent(bucket, *contents)
    here = node(tmp_path, bucket)
    wanted = {key: len(data) for data in contents for key in (key_of(data), _program(data))}
    here.fetcher.blobs(wanted, Counter("x", None), NEVER)
    for data in contents:
        path = Path(here.blobs.path(_program(data)))
        assert path.read_bytes() == data
        assert path.stat().st_mode & 0o777 == 0o755
        assert Path(here.blobs.path(key_of(data))).stat().st_mode & 0o777 == 0o644


def _program(data: bytes) -> BlobKey:
    return key_of(data)._replace(executable=True)


# -- shared --------------------------------------------------------------------------------------


class SlowBucket(DirectoryBucket):
    """Counts ranges, and waits before each until it is let go on."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, create=True)
        self.go_on = threading.Event()
        self.ranges: list[int] = []
        self.fails_at: int | None = None

    def read_range(self, key: str, start: int, length: int) -> bytes:
        self.ranges.append(start)
        self.go_on.wait(30)
        if self.fails_at is not None and start >= self.fails_at:
            raise faults.fault(Reason.STORE_UNAVAILABLE, "the network is gone")
        return super().read_range(key, start, length)


def test_who_wants_the_same_blob_shares_one_download_and_outlives_the_others_cancelling(
    tmp_path: Path,
) -> None:
    bucket = SlowBucket(tmp_path / "store")
    sent(bucket, LARGE)
    here = node(tmp_path, bucket)
    cancelled = threading.Event()
    outcomes: list[object] = []

    def fetch(stop: threading.Event) -> None:
        try:
            outcomes.append(here.fetch(LARGE, cancelled=stop).bytes)
        except CancelledWorkError:
            outcomes.append("cancelled")

    first = threading.Thread(target=fetch, args=(cancelled,))
    first.start()
    while not bucket.ranges:
        time.sleep(0.01)
    others = [threading.Thread(target=fetch, args=(NEVER,)) for _ in range(2)]
    for other in others:
        other.start()
    cancelled.set()
    bucket.go_on.set()
    for thread in (first, *others):
        thread.join(30)
    assert here.content(LARGE) == LARGE
    assert sorted(map(str, outcomes)) == sorted(["0", str(len(LARGE)), "cancelled"])


# -- large ones ----------------------------------------------------------------------------------


def test_a_download_that_broke_off_goes_on_where_it_was(tmp_path: Path) -> None:
    bucket = SlowBucket(tmp_path / "store")
    bucket.go_on.set()
    sent(bucket, LARGE)
    bucket.fails_at = 12 << 20
    error = fault(lambda: node(tmp_path, bucket).fetch(LARGE))
    assert error.fault.reason is Reason.STORE_UNAVAILABLE
    bucket.fails_at = None
    bucket.ranges.clear()
    here = node(tmp_path, bucket)  # as after a kill: nothing is left but the disk
    here.fetch(LARGE)
    assert here.content(LARGE) == LARGE
    assert min(bucket.ranges) == 12 << 20
    assert list((tmp_path / "node/partial-v1").iterdir()) == []


def test_a_part_that_was_spoilt_meanwhile_is_thrown_away(
    tmp_path: Path, bucket: DirectoryBucket
) -> None:
    sent(bucket, LARGE)
    here = node(tmp_path, bucket)
    for spoilt in (b"x" * 5_000_000, LARGE[:5_000_000] + b"\0", LARGE + b"more"):
        Path(here.blobs.partial(key_of(LARGE))).write_bytes(spoilt)
        counter = here.fetch(LARGE)
        assert here.content(LARGE) == LARGE
        assert counter.bytes == len(LARGE)
        here.blobs.remove([key_of(LARGE)])


@pytest.mark.parametrize("wrong", [LARGE[:-1], LARGE[:100], b"", LARGE[:-1] + b"x"])
def test_a_large_blob_that_is_short_or_other_never_arrives(
    tmp_path: Path, bucket: DirectoryBucket, wrong: bytes
) -> None:
    sent(bucket, LARGE)
    loose(tmp_path, LARGE).write_bytes(wrong)
    here = node(tmp_path, bucket)
    assert fault(lambda: here.fetch(LARGE)).fault.reason is Reason.FILES_CORRUPT
    assert not here.blobs.has(key_of(LARGE))
    assert list((tmp_path / "node/partial-v1").iterdir()) == []


def test_a_medium_blob_that_is_too_long_never_arrives(
    tmp_path: Path, bucket: DirectoryBucket
) -> None:
    data = LARGE[: 1 << 20]
    sent(bucket, data)
    loose(tmp_path, data).write_bytes(data + b"more")
    here = node(tmp_path, bucket)
    assert fault(lambda: here.fetch(data)).fault.reason is Reason.FILES_CORRUPT
    assert not here.blobs.has(key_of(data))


def test_zeros_become_holes(tmp_path: Path, bucket: DirectoryBucket) -> None:
    data = b"head" + bytes((16 << 20) - 4) + bytes(8 << 20)
    sent(bucket, data)
    here = node(tmp_path, bucket)
    here.fetch(data)
    assert here.content(data) == data
    assert Path(here.blobs.path(key_of(data))).stat().st_blocks * 512 < 4 << 20


# -- bad networks --------------------------------------------------------------------------------


def test_cut_replies_are_taken_up_again_and_busy_ones_asked_again(
    tmp_path: Path, far: Bucket, network: BadNetwork
) -> None:
    contents = small(400)
    sent(far, LARGE, *contents)
    network.cuts, network.cut_after = 6, 100_000
    network.answers = [BUSY, BUSY]
    here = node(tmp_path, far)
    here.fetch(LARGE, *contents)
    assert network.cuts == 0
    assert here.content(LARGE) == LARGE
    assert [here.content(data) for data in contents] == contents


def test_a_put_whose_reply_was_lost_is_there_all_the_same(far: Bucket, network: BadNetwork) -> None:
    network.swallow = 2
    contents = small(100)
    sent(far, *contents)
    assert network.swallow == 0
    assert Store("test:", far).absent_blobs({digests.of_bytes(contents[0]): 8}) == {
        digests.of_bytes(contents[0]): False
    }
    store = Store("test:", far)
    found = dict(store.small_blobs({digests.of_bytes(data): len(data) for data in contents}))
    assert len(found) == 100


def test_a_head_whose_move_lost_its_reply_has_moved(far: Bucket, network: BadNetwork) -> None:
    store = Store("test:", far)
    one, two = digests.of_bytes(b"1"), digests.of_bytes(b"2")
    network.swallow = 1
    assert store.move_head("p", "", one)
    network.swallow = 1
    assert store.move_head("p", one, two)
    assert store.head("p") == two


def test_a_store_that_is_gone_is_told_as_such(
    tmp_path: Path, far: Bucket, network: BadNetwork
) -> None:
    sent(far, LARGE)
    network.close()
    here = node(tmp_path, far)
    assert fault(lambda: here.fetch(LARGE)).fault.reason is Reason.STORE_UNAVAILABLE


class HungBucket(DirectoryBucket):
    """As on a mount whose server has gone: calls do not come back."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, create=True)
        self.released = threading.Event()
        self.hangs = False

    def _hang(self) -> None:
        if self.hangs:
            self.released.wait(60)

    def read_range(self, key: str, start: int, length: int) -> bytes:
        self._hang()
        return super().read_range(key, start, length)

    def read(self, key: str) -> Iterator[bytes]:
        self._hang()
        return super().read(key)

    def size(self, key: str) -> int | None:
        self._hang()
        return super().size(key)

    def put_many(self, uploads: Iterable[Upload], on_sent: Callable[[Upload], None]) -> None:
        self._hang()
        super().put_many(uploads, on_sent)


def test_a_store_on_a_hung_mount_becomes_a_fault_and_holds_up_nobody(tmp_path: Path) -> None:
    inner = HungBucket(tmp_path / "store")
    sent(inner, LARGE, b"tiny")
    bucket = WatchedBucket("file:///hung", lambda: inner, call_seconds=1.0, stall_seconds=1.0)
    inner.hangs = True
    here = node(tmp_path, bucket)
    for data in (LARGE, b"tiny"):
        assert fault(lambda data=data: here.fetch(data)).fault.reason is (  # type: ignore[misc]
            Reason.STORE_UNAVAILABLE
        )
    assert fault(lambda: sent(bucket, b"new")).fault.reason is Reason.STORE_UNAVAILABLE
    inner.released.set()
    inner.hangs = False
    patient = WatchedBucket("file:///hung", lambda: inner)
    again = node(tmp_path, patient)
    again.fetch(LARGE, b"tiny")
    assert again.content(LARGE) == LARGE
