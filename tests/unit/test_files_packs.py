"""Small objects in packs: found with few requests, checked, mended, and never in the way."""

import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from executord.core.reasons import FaultError, Reason
from executord.files.client.pull import pull_revision
from executord.files.client.push import Pushed, push_directory
from executord.files.model import digests, trees
from executord.files.store import pack_index, packs
from executord.files.store.bucket import Upload
from executord.files.store.directory_bucket import DirectoryBucket
from executord.files.store.pack_index import BadIndexError, Kind, Packed, PackIndex
from executord.files.store.pack_reader import spans
from executord.files.store.store import NewBlob, Store
from tests.fakes.files import contents, push, write_files


class CountingBucket(DirectoryBucket):
    """Counts what a store would be paid for; can be told to fail after some uploads."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, create=True)
        self.asked: list[tuple[str, str]] = []
        self.fails_at = ""

    def size(self, key: str) -> int | None:
        self.asked.append(("size", key))
        return super().size(key)

    def read(self, key: str) -> Iterator[bytes]:
        self.asked.append(("read", key))
        return super().read(key)

    def read_range(self, key: str, start: int, length: int) -> bytes:
        self.asked.append(("range", key))
        return super().read_range(key, start, length)

    def keys(self, prefix: str) -> list[str]:
        self.asked.append(("list", prefix))
        return list(super().keys(prefix))

    def count(self, kind: str, start: str) -> int:
        return sum(1 for what, key in self.asked if what == kind and key.startswith(start))


def many(count: int, *, start: int = 0) -> dict[str, bytes | str]:
    return {f"d{n % 7}/f{n}": f"content {n} " * 20 for n in range(start, start + count)}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return write_files(tmp_path / "project", many(300))


@pytest.fixture
def bucket(tmp_path: Path) -> CountingBucket:
    return CountingBucket(tmp_path / "store")


def opened(bucket: CountingBucket) -> Store:
    """As another machine sees it: with nothing remembered."""
    bucket.asked.clear()
    return Store("file:///counted", bucket)


def pack_files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "store/packs/data").rglob("*/*"))


def whole(store: Store, pushed: Pushed, project: Path) -> None:
    target = project.parent / "out"
    shutil.rmtree(target, ignore_errors=True)
    pull_revision(store, pushed.revision, target)
    assert contents(target) == contents(project)


# -- the index -----------------------------------------------------------------------------------


def index_of(*pieces: bytes) -> tuple[PackIndex, bytes]:
    data = b"".join(pieces)
    at = 0
    listed = []
    for piece in pieces:
        raw = bytes.fromhex(digests.of_bytes(piece).removeprefix(digests.PREFIX))
        listed.append(Packed(raw, at, len(piece), Kind.BLOB))
        at += len(piece)
    whole_pack = bytes.fromhex(digests.of_bytes(data).removeprefix(digests.PREFIX))
    return PackIndex(pack_index.encode(whole_pack, len(data), listed)), data


def raw(piece: bytes) -> bytes:
    return bytes.fromhex(digests.of_bytes(piece).removeprefix(digests.PREFIX))


@pytest.mark.parametrize("count", [1, 7, 400])
def test_an_index_tells_where_each_object_lies_whether_few_or_many_are_asked_for(
    count: int,
) -> None:
    pieces = [b"%d" % n * (n + 1) for n in range(count)]
    index, data = index_of(*pieces)
    for wanted in (pieces[:1], pieces):
        found = dict(index.find({raw(piece) for piece in wanted} | {raw(b"absent")}))
        assert {key: data[at.offset :][: at.size] for key, at in found.items()} == {
            raw(piece): piece for piece in wanted
        }


def test_every_flipped_bit_of_an_index_is_found() -> None:
    index, _ = index_of(b"a", b"bb")
    for at in range(len(index.data)):
        bad = bytearray(index.data)
        bad[at] ^= 1 << (at % 8)
        with pytest.raises(BadIndexError):
            PackIndex(bytes(bad))
    for noise in (b"", b"x", index.data[:-1], index.data + b"x"):
        with pytest.raises(BadIndexError):
            PackIndex(noise)


def test_neighbours_are_read_in_one_request_and_strangers_apart() -> None:
    located = {
        "a": pack_index.Location("p", 0, 100),
        "b": pack_index.Location("p", 150, 100),
        "c": pack_index.Location("p", 5_000_000, 100),
        "d": pack_index.Location("q", 0, 9_000_000),
    }
    cut = [(span.pack, span.start, span.length, len(span.objects)) for span in spans(located)]
    assert cut == [("p", 0, 250, 2), ("p", 5_000_000, 100, 1), ("q", 0, 9_000_000, 1)]


# -- pushing and pulling -------------------------------------------------------------------------


def test_many_small_files_are_a_handful_of_objects(
    bucket: CountingBucket, project: Path, tmp_path: Path
) -> None:
    pushed = push(opened(bucket), project)
    assert pushed.files_sent == 300
    assert len(pack_files(tmp_path)) == 1
    assert not (tmp_path / "store/blobs").exists()
    whole(opened(bucket), pushed, project)


def test_few_small_files_stay_loose(bucket: CountingBucket, tmp_path: Path) -> None:
    project = write_files(tmp_path / "project", many(20))
    pushed = push(opened(bucket), project)
    assert not (tmp_path / "store/packs/data").exists()
    whole(opened(bucket), pushed, project)


def test_a_reader_needs_a_hint_an_index_and_a_few_ranges(
    bucket: CountingBucket, project: Path
) -> None:
    pushed = push(opened(bucket), project)
    store = opened(bucket)
    store.learn(pushed.tree)
    wanted = {
        entry.digest: entry.size
        for folder in store.tree(pushed.tree)
        for entry in store.tree(folder.digest)
    }
    assert len(dict(store.small_blobs(wanted))) == 300
    assert bucket.count("read", "packs/hints") == 1
    assert bucket.count("read", "packs/index") == 1
    assert bucket.count("range", "packs/data") == 1
    assert bucket.count("list", "") == 0


def test_without_its_hint_everything_is_found_by_listing(
    bucket: CountingBucket, project: Path, tmp_path: Path
) -> None:
    pushed = push(opened(bucket), project)
    shutil.rmtree(tmp_path / "store/packs/hints")
    store = opened(bucket)
    whole(store, pushed, project)
    assert bucket.count("list", "packs/index") == 1


def test_indexes_are_kept_on_the_node_and_not_fetched_again(
    bucket: CountingBucket, project: Path, tmp_path: Path
) -> None:
    pushed = push(opened(bucket), project)
    for fetched in (1, 0):
        bucket.asked.clear()
        store = Store("file:///counted", bucket, packs_home=tmp_path / "home")
        whole(store, pushed, project)
        assert bucket.count("read", "packs/index") == fetched


def test_a_second_push_adds_a_pack_of_what_is_new_and_its_hint_names_both(
    bucket: CountingBucket, project: Path, tmp_path: Path
) -> None:
    push(opened(bucket), project)
    write_files(project, many(100, start=1000))
    second = push(opened(bucket), project)
    assert second.files_sent == 100
    assert len(pack_files(tmp_path)) == 2
    store = opened(bucket)
    whole(store, second, project)
    assert bucket.count("list", "") == 0


def test_packed_files_are_known_to_the_store_without_asking_for_each(
    bucket: CountingBucket, project: Path
) -> None:
    pushed = push(opened(bucket), project)
    store = opened(bucket)
    store.learn(pushed.tree)
    sizes = {digests.of_bytes(str(text).encode()): len(str(text)) for text in many(300).values()}
    bucket.asked.clear()
    assert store.absent_blobs(sizes) == {}
    assert len(bucket.asked) == 2  # the pack and its index


def test_a_store_from_before_packs_is_read_as_ever(
    bucket: CountingBucket, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("executord.files.store.sending.WORTH_A_PACK", 10**9)
    pushed = push(opened(bucket), project)
    monkeypatch.undo()
    whole(opened(bucket), pushed, project)
    write_files(project, many(50, start=2000))
    whole(opened(bucket), push(opened(bucket), project), project)


def test_equal_pushes_at_once_make_the_same_packs(tmp_path: Path) -> None:
    results: list[Pushed] = []

    def one(n: int) -> None:
        mine = write_files(tmp_path / f"p{n}/project", many(300))
        store = Store.open(f"file://{tmp_path}/store", {}, create=True)
        results.append(push(store, mine, f"p{n}"))

    threads = [threading.Thread(target=one, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({pushed.tree for pushed in results}) == 1
    assert len(results) == 4
    assert len(pack_files(tmp_path)) == 1


def test_a_project_of_many_crumbs_is_written_afresh(
    bucket: CountingBucket, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("executord.files.store.store._MANY_PACKS", 2)
    store = opened(bucket)
    for round_number in range(3):
        write_files(project, many(40, start=1000 * (round_number + 1)))
        pushed = push(store, project)
    assert len(store._packs.learn(pushed.tree)) == 3
    write_files(project, {"last": "one"})
    pushed = push(store, project)
    fresh = opened(bucket)
    fresh.learn(pushed.tree)
    (only,) = fresh._packs.learn(pushed.tree)
    for path in pack_files(tmp_path):
        if path.name != only:
            path.unlink()
    whole(opened(bucket), pushed, project)


# -- damage --------------------------------------------------------------------------------------


def reason_and_text(store: Store, pushed: Pushed, target: Path) -> tuple[Reason, str]:
    with pytest.raises(FaultError) as caught:
        pull_revision(store, pushed.revision, target)
    assert not target.exists()
    return caught.value.fault.reason, caught.value.fault.detail


@pytest.mark.parametrize("damage", ["flipped", "torn", "gone"])
def test_a_damaged_pack_is_named_and_sending_again_mends_it(
    bucket: CountingBucket, project: Path, tmp_path: Path, damage: str
) -> None:
    pushed = push(opened(bucket), project)
    (pack,) = pack_files(tmp_path)
    good = pack.read_bytes()
    if damage == "flipped":
        pack.write_bytes(good[:100] + bytes([good[100] ^ 4]) + good[101:])
    elif damage == "torn":
        pack.write_bytes(good[: len(good) // 2])
    else:
        pack.unlink()
    store = opened(bucket)
    reason, text = reason_and_text(store, pushed, tmp_path / "out")
    assert reason is Reason.FILES_CORRUPT
    assert pack.name in text or damage == "gone"
    again = push(store, project, "alice/again")
    assert (again.tree, again.files_sent) == (pushed.tree, 300)
    assert pack.read_bytes() == good
    whole(opened(bucket), pushed, project)


def test_a_loose_copy_stands_in_for_a_damaged_pack(
    bucket: CountingBucket, project: Path, tmp_path: Path
) -> None:
    pushed = push(opened(bucket), project)
    (pack,) = pack_files(tmp_path)
    pack.write_bytes(b"x" * pack.stat().st_size)
    for text in many(300).values():
        data = str(text).encode()
        name = digests.of_bytes(data).removeprefix(digests.PREFIX)
        write_files(tmp_path / "store/blobs" / name[:2], {name: data})
    whole(opened(bucket), pushed, project)


def test_another_pack_stands_in_for_a_damaged_one(
    bucket: CountingBucket, project: Path, tmp_path: Path
) -> None:
    pushed = push(opened(bucket), project)
    (first,) = pack_files(tmp_path)
    other = dict(list(many(300).items())[::-1])
    blobs = [
        NewBlob(digests.of_bytes(data), len(data), lambda data=data: iter((data,)))  # type: ignore[misc]
        for data in (str(text).encode() for text in other.values())
    ]
    opened(bucket).put_blobs(blobs, lambda _: None)
    assert len(pack_files(tmp_path)) == 2
    first.write_bytes(b"x" * first.stat().st_size)
    whole(opened(bucket), pushed, project)


def test_an_index_that_is_noise_is_as_good_as_none(
    bucket: CountingBucket, project: Path, tmp_path: Path
) -> None:
    pushed = push(opened(bucket), project)
    (index,) = (tmp_path / "store/packs/index").iterdir()
    index.write_bytes(os.urandom(500))
    reason, _ = reason_and_text(opened(bucket), pushed, tmp_path / "out")
    assert reason is Reason.FILES_CORRUPT


# -- killed --------------------------------------------------------------------------------------


class BreakingBucket(CountingBucket):
    """Its power goes between a pack and its index."""

    broken = False

    def put_many(self, uploads: object, on_sent: object) -> None:
        def until_the_index(given: Iterator[Upload]) -> Iterator[Upload]:
            for upload in given:
                yield Upload(key=upload.key, size=upload.size, open=upload.open)

        if self.broken:
            super().put_many(until_the_index(iter(uploads)), on_sent)  # type: ignore[arg-type, call-overload]
            raise KeyboardInterrupt
        super().put_many(uploads, on_sent)  # type: ignore[arg-type]


def test_a_push_cut_off_between_pack_and_index_is_done_again_with_the_same_pack(
    tmp_path: Path, project: Path
) -> None:
    bucket = BreakingBucket(tmp_path / "store")
    bucket.broken = True
    with pytest.raises(KeyboardInterrupt):
        push(opened(bucket), project)
    assert len(pack_files(tmp_path)) == 1
    bucket.broken = False
    pushed = push(opened(bucket), project)
    assert len(pack_files(tmp_path)) == 1
    whole(opened(bucket), pushed, project)


def test_what_a_killed_push_has_sent_is_not_sent_again(
    bucket: CountingBucket, project: Path, tmp_path: Path
) -> None:
    texts = [str(text).encode() for text in many(300).values()]
    blobs = [
        NewBlob(digests.of_bytes(data), len(data), lambda data=data: iter((data,)))  # type: ignore[misc]
        for data in texts
    ]
    first = Store("file:///counted", bucket, packs_home=tmp_path / "home")
    first.put_blobs(blobs, lambda _: None)
    again = push_directory(
        Store("file:///counted", bucket, packs_home=tmp_path / "home"),
        project,
        "p",
        cache_home=tmp_path / "hashes",
    )
    assert again.files_sent == 0
    whole(opened(bucket), again, project)


def test_trees_come_out_of_packs_many_at_a_time(bucket: CountingBucket, tmp_path: Path) -> None:
    project = write_files(tmp_path / "project", {f"d{n}/f": str(n) for n in range(200)})
    pushed = push(opened(bucket), project)
    store = opened(bucket)
    folders = [entry.digest for entry in store.tree(pushed.tree)]
    bucket.asked.clear()
    found = store.trees_bytes(folders)
    assert all(len(trees.decode(found[digest])) == 1 for digest in folders)
    assert len(bucket.asked) == 1


def test_a_hint_takes_nothing_back_that_another_has_said(bucket: CountingBucket) -> None:
    tree = digests.of_bytes(b"tree")
    one, two = (digests.of_bytes(text).removeprefix(digests.PREFIX) for text in (b"1", b"2"))
    packs.Packs(bucket, None).hint(tree, [one])
    packs.Packs(bucket, None).hint(tree, [two])
    assert packs.Packs(bucket, None).learn(tree) == (one, two)
