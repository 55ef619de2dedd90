"""The shared store: the same promises on a directory and on an object store."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from executord.core.reasons import FaultError, Reason
from executord.files.cache.blobs import WrongContentError
from executord.files.model import digests, revisions, trees
from executord.files.model.trees import EMPTY_TREE
from executord.files.store.bucket import Bucket, LazyBucket, open_bucket
from executord.files.store.directory_bucket import DirectoryBucket
from executord.files.store.object_bucket import ObjectBucket
from executord.files.store.store import BadProjectError, NewBlob, Store, check_project
from executord.ports import Revision
from tests.fakes.s3 import new_bucket, options, s3_server

A = digests.of_bytes(b"revision a")
B = digests.of_bytes(b"revision b")


def nobody_cares(_: int) -> None:
    pass


@pytest.fixture(scope="session")
def endpoint() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture(params=["directory", "watched", "memory", "s3"])
def bucket(request: pytest.FixtureRequest, tmp_path: Path) -> Bucket:
    if request.param == "directory":
        return DirectoryBucket(tmp_path / "store", create=True)
    if request.param == "watched":
        return open_bucket(f"file://{tmp_path}/store", {}, create=True, watched=True)
    if request.param == "memory":
        return ObjectBucket("memory:///", {})
    endpoint: str = request.getfixturevalue("endpoint")
    return open_bucket(f"s3://{new_bucket(endpoint)}/some/prefix", options(endpoint))


@pytest.fixture
def store(bucket: Bucket) -> Store:
    return Store("test:", bucket)


@pytest.fixture
def directory(tmp_path: Path) -> Store:
    return Store.open(f"file://{tmp_path}/store", {}, create=True)


def blob(data: bytes, promised: bytes | None = None) -> NewBlob:
    promised = data if promised is None else promised
    return NewBlob(digests.of_bytes(promised), len(promised), lambda: iter((data,)))


def put(store: Store, *contents: bytes) -> list[str]:
    store.put_blobs([blob(data) for data in contents], nobody_cares)
    return [digests.of_bytes(data) for data in contents]


def reason(work: Callable[[], object]) -> Reason:
    with pytest.raises(FaultError) as caught:
        work()
    return caught.value.fault.reason


# -- the contract --------------------------------------------------------------------------------


def test_a_blob_comes_back_as_it_was(store: Store) -> None:
    for data in (b"", b"small", os.urandom(3 << 20)):
        (digest,) = put(store, data)
        assert b"".join(store.blob(digest, len(data))) == data


def test_a_large_blob_comes_back_as_it_was(store: Store) -> None:
    data = os.urandom(17 << 20)
    pieces = [data[at : at + (1 << 20)] for at in range(0, len(data), 1 << 20)]
    digest = digests.of_bytes(data)
    store.put_blobs([NewBlob(digest, len(data), lambda: iter(pieces))], nobody_cares)
    assert b"".join(store.blob(digest, len(data))) == data


def test_many_blobs_are_told_of_one_by_one(store: Store) -> None:
    contents = [bytes([n % 256, n // 256]) for n in range(600)]
    told: list[int] = []
    store.put_blobs([blob(data) for data in contents], told.append)
    assert told == [2] * 600
    assert store.absent_blobs({digests.of_bytes(data): 2 for data in contents}) == {}


def test_what_is_absent_and_what_is_damaged_is_told_apart(store: Store) -> None:
    (here,) = put(store, b"here")
    assert store.absent_blobs({here: 4, A: 9}) == {A: False}
    assert store.absent_blobs({here: 5}) == {here: True}


def test_bytes_that_are_not_as_promised_never_become_a_blob(store: Store) -> None:
    for wrong in (b"other", b"short", b"longer than promised", b""):
        promised = b"right"
        with pytest.raises(WrongContentError):
            store.put_blobs([blob(wrong, promised)], nobody_cares)
        assert store.absent_blobs({digests.of_bytes(promised): 5}) != {}


def test_a_source_that_breaks_off_leaves_nothing(store: Store) -> None:
    def breaks() -> Iterator[bytes]:
        yield b"x" * (20 << 20)
        raise RuntimeError("gone")

    size = 40 << 20
    with pytest.raises(RuntimeError, match="gone"):
        store.put_blobs([NewBlob(A, size, breaks)], nobody_cares)
    assert store.absent_blobs({A: size}) == {A: False}


def test_writing_the_same_again_changes_nothing(store: Store) -> None:
    (digest,) = put(store, b"twice")
    put(store, b"twice")
    assert b"".join(store.blob(digest, 5)) == b"twice"


def test_trees_and_revisions_come_back(store: Store) -> None:
    tree, tree_data = trees.encode([trees.link_entry("l", "t")])
    digest, data = revisions.encode(Revision(tree=tree, author="alice"))
    store.put_trees({tree: tree_data})
    store.put_revision(digest, data)
    assert store.revision(digest).author == "alice"
    assert [entry.name for entry in store.tree(tree)] == ["l"]
    assert store.tree(EMPTY_TREE) == ()


def test_a_revision_that_is_not_there_is_told_as_such(store: Store) -> None:
    assert reason(lambda: store.revision(A)) is Reason.REVISION_NOT_FOUND


def test_a_tree_or_blob_that_is_not_there_is_a_corrupt_store(store: Store) -> None:
    assert reason(lambda: store.tree(A)) is Reason.FILES_CORRUPT
    assert reason(lambda: list(store.blob(A, 1))) is Reason.FILES_CORRUPT


def test_a_head_moves_only_from_where_it_is_expected(store: Store) -> None:
    assert store.head("alice/churn") == ""
    assert not store.move_head("alice/churn", A, B)
    assert store.move_head("alice/churn", "", A)
    assert not store.move_head("alice/churn", "", B)
    assert store.move_head("alice/churn", A, B)
    assert store.head("alice/churn") == B


def test_moving_a_head_again_to_where_it_is_is_fine(store: Store) -> None:
    assert store.move_head("p", "", A)
    assert store.move_head("p", "", A)


def test_of_many_who_move_a_head_at_once_one_wins(store: Store) -> None:
    wanted = [digests.of_bytes(bytes([n])) for n in range(8)]
    barrier = threading.Barrier(len(wanted))
    won: list[str] = []

    def move(digest: str) -> None:
        barrier.wait()
        if store.move_head("p", "", digest):
            won.append(digest)

    threads = [threading.Thread(target=move, args=(digest,)) for digest in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert won == [store.head("p")]


def test_a_run_points_to_its_revision_also_without_a_project(store: Store) -> None:
    for project in ("alice/churn", ""):
        store.set_run_revision(project, "r-1", A)
        store.set_run_revision(project, "r-1", B)
        assert store.run_revision(project, "r-1") == B
        assert store.run_revision(project, "r-2") == ""


def test_a_revision_is_found_by_its_beginning_and_by_its_project(store: Store) -> None:
    made = []
    for n in range(40):
        digest, data = revisions.encode(Revision(tree=EMPTY_TREE, message=str(n)))
        store.put_revision(digest, data)
        made.append(digest)
    store.move_head("alice/churn", "", made[7])
    assert store.resolve(made[3]) == made[3]
    assert store.resolve(made[3][:20]) == made[3]
    assert store.resolve(made[3].removeprefix("sha256:")[:12]) == made[3]
    assert store.resolve("alice/churn") == made[7]
    for unknown in ("abcdef0123", "bob/x", "../x", "sha256:", ""):
        assert reason(lambda text=unknown: store.resolve(text)) is Reason.REVISION_NOT_FOUND  # type: ignore[misc]


# -- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["churn", "alice/churn", "a.b-c_d/E9", "x" * 128])
def test_a_project_is_named_by_one_or_two_words(name: str) -> None:
    check_project(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/",
        "a/",
        "/a",
        "a/b/c",
        "..",
        "../a",
        "a/..",
        "./a",
        "a b",
        "ä",
        "a\n",
        "a\0",
        "x" * 129,
        "alice/head",
        "alice/runs",
    ],
)
def test_what_could_lead_elsewhere_is_no_project(name: str) -> None:
    with pytest.raises(BadProjectError):
        check_project(name)


# -- a directory as a store ----------------------------------------------------------------------


def stored(root: Path, folder: str, digest: str) -> Path:
    name = digest.removeprefix("sha256:")
    return root / "store" / folder / name[:2] / name


@pytest.mark.parametrize("damage", [b"wrong", b"shor", b"longer than", b""])
def test_content_that_is_not_what_its_digest_says_is_found_on_reading(
    directory: Store, tmp_path: Path, damage: bytes
) -> None:
    (digest,) = put(directory, b"right")
    stored(tmp_path, "blobs", digest).write_bytes(damage)
    assert reason(lambda: list(directory.blob(digest, 5))) is Reason.FILES_CORRUPT
    directory.put_trees({EMPTY_TREE: trees.EMPTY_TREE_BYTES})
    tree, data = trees.encode([trees.link_entry("l", "t")])
    directory.put_trees({tree: data})
    stored(tmp_path, "trees", tree).write_bytes(damage)
    assert reason(lambda: directory.tree(tree)) is Reason.FILES_CORRUPT


def test_sending_a_short_blob_again_mends_it(directory: Store, tmp_path: Path) -> None:
    (digest,) = put(directory, b"right")
    stored(tmp_path, "blobs", digest).write_bytes(b"ri")
    absent = directory.absent_blobs({digest: 5})
    damaged = frozenset(name for name, bad in absent.items() if bad)
    directory.put_blobs([blob(b"right")], nobody_cares, damaged=damaged)
    assert b"".join(directory.blob(digest, 5)) == b"right"


def test_a_store_that_went_away_is_not_one_that_lost_its_revisions(
    directory: Store, tmp_path: Path
) -> None:
    digest, data = revisions.encode(Revision(tree=EMPTY_TREE))
    directory.put_revision(digest, data)
    (tmp_path / "store").rename(tmp_path / "elsewhere")
    assert reason(lambda: directory.revision(digest)) is Reason.STORE_UNAVAILABLE
    assert reason(lambda: directory.head("p")) is Reason.STORE_UNAVAILABLE
    assert reason(lambda: directory.move_head("p", "", A)) is Reason.STORE_UNAVAILABLE
    assert reason(lambda: put(directory, b"x")) is Reason.STORE_UNAVAILABLE
    assert not (tmp_path / "store").exists()
    (tmp_path / "elsewhere").rename(tmp_path / "store")
    assert directory.revision(digest).tree == EMPTY_TREE


def test_a_store_that_comes_later_is_opened_then(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/later"
    store = Store(url, LazyBucket(url, {}, create=False))
    assert reason(lambda: store.head("p")) is Reason.STORE_UNAVAILABLE
    (tmp_path / "later").mkdir()
    assert store.head("p") == ""


@pytest.mark.parametrize("url", ["file://relative", "file:///no/such/place", "ftp://x", "nonsense"])
def test_a_store_that_is_none_is_refused_with_its_name(url: str) -> None:
    with pytest.raises(FaultError, match=url) as caught:
        Store.open(url, {})
    assert caught.value.fault.reason is Reason.STORE_UNAVAILABLE


def test_a_head_that_is_no_digest_is_found(directory: Store, tmp_path: Path) -> None:
    directory.move_head("p", "", A)
    (tmp_path / "store/projects/p/head").write_bytes(b"garbage")
    assert reason(lambda: directory.head("p")) is Reason.FILES_CORRUPT


def test_nothing_is_left_in_staging(directory: Store, tmp_path: Path) -> None:
    put(directory, b"a", b"b")
    with pytest.raises(WrongContentError):
        directory.put_blobs([blob(b"c"), blob(b"x", b"y")], nobody_cares)
    assert list((tmp_path / "store" / "incoming").iterdir()) == []


def test_folders_and_files_have_the_rights_of_the_store_itself(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store").chmod(0o2770)
    before = os.umask(0o077)
    try:
        store = Store.open(f"file://{tmp_path}/store", {})
        (digest,) = put(store, b"x")
        store.move_head("alice/p", "", A)
    finally:
        os.umask(before)
    path = stored(tmp_path, "blobs", digest)
    assert path.stat().st_mode & 0o7777 == 0o660
    assert path.parent.stat().st_mode & 0o7777 == 0o2770
    assert (tmp_path / "store/projects/alice/p/head").stat().st_mode & 0o777 == 0o660


MOVES_MANY = """
import sys
from executord.files.model import digests
from executord.files.store.store import Store
store = Store.open(sys.argv[1], {})
for n in range(15):
    while True:
        head = store.head("p")
        wanted = digests.of_bytes(f"{sys.argv[2]} {n} {head}".encode())
        if store.move_head("p", head, wanted):
            print(head or "-", wanted)
            break
"""


def test_heads_moved_by_several_processes_form_one_chain(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/store"
    Store.open(url, {}, create=True)
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", MOVES_MANY, url, str(n)], stdout=subprocess.PIPE, text=True
        )
        for n in range(3)
    ]
    outputs = [worker.communicate(timeout=60)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0, 0]
    moves = dict(line.split() for output in outputs for line in output.splitlines())
    at, length = "-", 0
    while at in moves:
        at, length = moves[at], length + 1
    assert length == 45
    assert at == Store.open(url, {}).head("p")


@pytest.mark.skipif(os.geteuid() != 0, reason="has to become another user")
def test_a_user_who_may_not_write_is_refused_as_such(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    for path in (tmp_path, *tmp_path.parents):
        if path == Path("/tmp"):
            break
        path.chmod(path.stat().st_mode | 0o011)
    script = (
        "import os\n"
        "from executord.files.store.store import Store\n"
        "from executord.core.reasons import FaultError\n"
        "os.setgid(65534); os.setuid(65534)\n"
        f"store = Store.open('file://{tmp_path}/store', {{}})\n"
        "try:\n    store.put_revision('sha256:' + 'a' * 64, b'')\n"
        "except FaultError as error:\n    print(error.fault.reason)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.strip() == Reason.STORE_DENIED, done.stderr
