"""Pushing a directory, pulling it again, and telling what differs."""

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from executord.core.reasons import FaultError, Reason
from executord.files.client import statcache
from executord.files.client.pull import PullError, diff_revisions, pull_revision
from executord.files.client.push import PushError, push_directory
from executord.files.client.scan import scan
from executord.files.model import ignore
from executord.files.store.store import BadProjectError, Store
from executord.ports import Progress
from tests.fakes.files import contents, new_store, push, write_files

FILES = {"a.txt": "a", "b/c.txt": "c", "b/d/e": "e", "empty/": "", "none": ""}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return new_store(tmp_path / "store")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return write_files(tmp_path / "project", FILES)


@pytest.fixture
def _remembering(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashes of files that were written just now are remembered too."""
    monkeypatch.setattr(statcache, "RACY_NS", 0)


def test_what_is_pushed_comes_back_as_it_was(store: Store, project: Path, tmp_path: Path) -> None:
    (project / "run.sh").write_text("#!/bin/sh\n")
    (project / "run.sh").chmod(0o755)
    (project / "link").symlink_to("b/c.txt")
    (project / "broken").symlink_to("/no/such")
    (project / os.fsdecode(b"caf\xe9")).write_text("x")
    pushed = push(store, project)
    assert (pushed.head, pushed.files, pushed.skipped) == ("moved", 6, ())
    pulled = pull_revision(store, pushed.revision, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(project)
    assert (tmp_path / "out/run.sh").stat().st_mode & 0o111
    assert not (tmp_path / "out/a.txt").stat().st_mode & 0o111
    assert pulled.files == 8


def test_a_second_push_sends_only_what_changed(store: Store, project: Path) -> None:
    first = push(store, project)
    write_files(project, {"a.txt": "changed", "b/new": "c"})
    second = push(store, project)
    assert first.files_sent == 4
    assert (second.files_sent, second.bytes_sent) == (1, 7)
    assert store.revision(second.revision).parent == first.revision
    assert store.head("alice/churn") == second.revision


def test_a_push_that_changes_nothing_makes_no_revision(store: Store, project: Path) -> None:
    first = push(store, project)
    again = push(store, project)
    assert (again.revision, again.head, again.files_sent) == (first.revision, "unchanged", 0)


@pytest.mark.usefixtures("_remembering")
def test_only_files_that_were_touched_are_read_again(store: Store, project: Path) -> None:
    push(store, project)
    (project / "b/c.txt").write_text("other")
    cache = statcache.StatCache(project, project.parent / "hashes")
    assert scan(project, cache, lambda _files, _bytes: None).files_read == 1


def test_a_file_changed_within_its_times_granularity_is_read_again(
    store: Store, project: Path
) -> None:
    first = push(store, project)
    before = (project / "a.txt").stat()
    (project / "a.txt").write_text("b")
    os.utime(project / "a.txt", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert push(store, project).revision != first.revision


@pytest.mark.usefixtures("_remembering")
def test_a_spoilt_hash_cache_costs_nothing_but_time(
    store: Store, project: Path, tmp_path: Path
) -> None:
    first = push(store, project)
    (cache,) = (tmp_path / "hashes/stat-v2").iterdir()
    whole = cache.read_bytes()
    for spoilt in (b"", b"garbage", bytes(len(whole)), whole[:-1], whole[200:]):
        cache.write_bytes(spoilt)
        assert push(store, project).revision == first.revision


def test_ignored_files_are_not_pushed(store: Store, project: Path, tmp_path: Path) -> None:
    write_files(
        project,
        {
            ".dominoignore": "*.log\n/b/d/\n!keep.log\n# comment\n\n",
            "x.log": "x",
            "b/y.log": "y",
            "keep.log": "k",
            "other/d/z": "z",
        },
    )
    pushed = push(store, project)
    pull_revision(store, pushed.revision, tmp_path / "out")
    names = [name for name in contents(tmp_path / "out") if not name.endswith("/")]
    assert names == [".dominoignore", "a.txt", "b/c.txt", "keep.log", "none", "other/d/z"]


def test_what_cannot_be_stored_is_named(store: Store, project: Path) -> None:
    os.mkfifo(project / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(project / "sock"))
    pushed = push(store, project)
    assert sorted(pushed.skipped) == [
        "pipe: a FIFO cannot be stored",
        "sock: a socket cannot be stored",
    ]


def test_a_link_out_of_the_project_is_stored_as_a_link(
    store: Store, project: Path, tmp_path: Path
) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").write_text("secret")
    (project / "dir").symlink_to(tmp_path / "outside")
    pushed = push(store, project)
    pull_revision(store, pushed.revision, tmp_path / "out")
    assert (tmp_path / "out/dir").is_symlink()
    assert not any("secret" in name for name in contents(tmp_path / "out"))


def test_a_path_of_three_hundred_directories_is_pushed_and_pulled(
    store: Store, tmp_path: Path
) -> None:
    project = tmp_path / "deep"
    project.mkdir()
    fd = os.open(project, os.O_RDONLY)
    for _ in range(300):
        os.mkdir("d" * 50, dir_fd=fd)
        below = os.open("d" * 50, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(os.open("bottom", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)
    pushed = push(store, project)
    assert (pushed.files, pushed.skipped) == (1, ())
    pulled = pull_revision(store, pushed.revision, tmp_path / "out")
    assert pulled.files == 1
    assert push(store, tmp_path / "out", "alice/copy").tree == pushed.tree


def test_a_file_that_changes_while_it_is_sent_is_looked_at_again(
    store: Store, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = iter(["second", "third"])

    def meddle(progress: Progress) -> None:
        if progress.what == "scanning" and progress.files_done == 4:
            text = next(changes, None)
            if text is not None:
                (project / "a.txt").write_text(text)

    pushed = push_directory(
        store, project, "p", on_progress=meddle, cache_home=project.parent / "hashes"
    )
    assert pushed.head == "moved"
    assert b"".join(_content(store, pushed.tree, "a.txt")) == b"third"


def test_a_file_that_never_rests_is_named(store: Store, project: Path) -> None:
    counter = iter(range(1000))

    def meddle(progress: Progress) -> None:
        if progress.what == "scanning" and progress.files_done == 4:
            (project / "a.txt").write_text(f"{next(counter)} more")

    with pytest.raises(PushError, match=r"a\.txt keeps changing"):
        push_directory(
            store, project, "p", on_progress=meddle, cache_home=project.parent / "hashes"
        )
    assert store.head("p") == ""


def _content(store: Store, tree: str, name: str) -> list[bytes]:
    (entry,) = [entry for entry in store.tree(tree) if entry.name == name]
    return list(store.blob(entry.digest, entry.size))


def test_of_two_pushes_at_once_one_moves_the_head_and_the_other_says_so(
    store: Store, project: Path, tmp_path: Path
) -> None:
    push(store, project)
    other = write_files(tmp_path / "other", {"x": "x"})
    raced: list[str] = []

    def race(progress: Progress) -> None:
        if progress.what == "sending" and not raced:
            raced.append(push(store, other).revision)

    (project / "a.txt").write_text("mine")
    pushed = push_directory(
        store, project, "alice/churn", on_progress=race, cache_home=tmp_path / "hashes"
    )
    assert (pushed.head, pushed.head_revision) == ("conflict", "")
    assert (pushed.conflicts, pushed.conflict_count) == (("a.txt",), 1)
    assert store.head("alice/churn") == raced[0]
    assert store.revision(pushed.revision).tree == pushed.tree


def test_of_two_pushes_at_once_that_change_different_files_the_second_is_merged(
    store: Store, project: Path, tmp_path: Path
) -> None:
    base = push(store, project).revision
    other = write_files(tmp_path / "copies/other", FILES | {"b/d/e": "theirs", "b/theirs": "new"})
    raced: list[str] = []

    def race(progress: Progress) -> None:
        if progress.what == "sending" and not raced:
            raced.append(push(store, other).revision)

    write_files(project, {"a.txt": "mine", "b/mine": "new"})
    pushed = push_directory(
        store, project, "alice/churn", on_progress=race, cache_home=tmp_path / "hashes"
    )
    assert (pushed.head, pushed.conflicts) == ("merged", ())
    head = store.revision(pushed.head_revision)
    assert store.head("alice/churn") == pushed.head_revision
    assert (head.parent, head.merged) == (raced[0], pushed.revision)
    assert store.revision(pushed.revision).parent == base
    pull_revision(store, "alice/churn", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(project) | {"b/d/e": "theirs", "b/theirs": "new"}
    pull_revision(store, pushed.revision, tmp_path / "own")
    assert contents(tmp_path / "own") == contents(project)


def test_of_two_first_pushes_at_once_the_second_is_merged(store: Store, tmp_path: Path) -> None:
    one = write_files(tmp_path / "one", {"one": "1", "both/one": "1"})
    two = write_files(tmp_path / "two", {"two": "2", "both/two": "2"})
    raced: list[str] = []

    def race(progress: Progress) -> None:
        if progress.what == "sending" and not raced:
            raced.append(push(store, two).head)

    pushed = push_directory(store, one, "alice/churn", on_progress=race, cache_home=tmp_path / "h")
    assert (raced, pushed.head) == (["moved"], "merged")
    pull_revision(store, "alice/churn", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(one) | contents(two)


def test_many_pushes_at_once_of_different_files_all_reach_the_head(
    store: Store, tmp_path: Path
) -> None:
    push(store, write_files(tmp_path / "base", FILES))
    both_have_looked = threading.Barrier(4)
    ends: list[str] = []

    def one(n: int) -> None:
        project = write_files(tmp_path / f"p{n}" / "project", FILES | {f"b/{n}": f"{n}"})

        def wait(progress: Progress) -> None:
            if progress.what == "sending" and not progress.files_done:
                both_have_looked.wait(30)

        ends.append(
            push_directory(
                store, project, "alice/churn", on_progress=wait, cache_home=project.parent / "h"
            ).head
        )

    threads = [threading.Thread(target=one, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ends) == ["merged", "merged", "merged", "moved"]
    pull_revision(store, "alice/churn", tmp_path / "out")
    added = {f"b/{n}": f"{n}" for n in range(4)}
    assert contents(tmp_path / "out") == contents(tmp_path / "base") | added


def test_equal_pushes_at_once_all_succeed(store: Store, tmp_path: Path) -> None:
    files = {f"d{n % 7}/f{n}": f"{n}" * 50 for n in range(300)}
    results: list[str] = []

    def one(n: int) -> None:
        project = write_files(tmp_path / f"p{n}" / "project", files)
        results.append(push(store, project, f"p{n}").tree)

    threads = [threading.Thread(target=one, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert len(set(results)) == 1
    pull_revision(store, "p2", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "p0" / "project")


def test_progress_reaches_its_totals(store: Store, project: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []
    push_directory(store, project, "p", on_progress=seen.append, cache_home=tmp_path / "h")
    last = [p for p in seen if p.what == "sending"][-1]
    assert (last.files_done, last.files_total) == (4, 4)
    assert last.bytes_done == last.bytes_total == 3
    pull_revision(store, "p", tmp_path / "out", on_progress=seen.append)
    assert seen[-1].files_done == seen[-1].files_total == 4


@pytest.mark.parametrize("name", ["", "../x", "a/b/c"])
def test_a_bad_project_is_refused_before_anything_is_read(
    store: Store, project: Path, name: str
) -> None:
    with pytest.raises(BadProjectError):
        push_directory(store, project, name)


def test_what_is_no_directory_cannot_be_pushed(store: Store, project: Path) -> None:
    for path in (project / "a.txt", project / "nothing"):
        with pytest.raises(PushError, match="not a directory"):
            push(store, path)


@pytest.mark.skipif(os.geteuid() != 0, reason="has to become another user")
def test_an_ordinary_user_can_push_to_a_store_he_may_write(tmp_path: Path) -> None:
    project = write_files(tmp_path / "project", FILES)
    store = tmp_path / "store"
    store.mkdir()
    os.chown(store, 65534, 65534)
    for path in (tmp_path, *tmp_path.parents):
        if path == Path("/tmp"):
            break
        path.chmod(path.stat().st_mode | 0o011)
    script = (
        "import os\n"
        "from pathlib import Path\n"
        "from executord.files.client.push import push_directory\n"
        "from executord.files.store.store import Store\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "os.environ['HOME'] = '/nonexistent'\n"
        f"store = Store.open('file://{store}', {{}})\n"
        f"print(push_directory(store, Path('{project}'), 'nobody/x').head)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.strip() == "moved", done.stderr
    assert {path.stat().st_uid for path in store.rglob("*")} == {65534}


# -- pull ----------------------------------------------------------------------------------------


def test_pull_goes_into_an_empty_directory_and_never_over_anything(
    store: Store, project: Path, tmp_path: Path
) -> None:
    revision = push(store, project).revision
    (tmp_path / "empty").mkdir()
    pull_revision(store, revision, tmp_path / "empty")
    assert contents(tmp_path / "empty") == contents(project)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for taken in (project, project / "a.txt", tmp_path / "link"):
        with pytest.raises(PullError, match="not empty"):
            pull_revision(store, revision, taken)
    assert contents(tmp_path / "empty") == contents(project)


def test_a_pull_that_fails_leaves_nothing(store: Store, project: Path, tmp_path: Path) -> None:
    revision = push(store, project).revision
    for path in (tmp_path / "store/blobs").rglob("*"):
        if path.is_file() and path.stat().st_size == 1:
            path.write_bytes(b"X")
    with pytest.raises(FaultError) as caught:
        pull_revision(store, revision, tmp_path / "out")
    assert caught.value.fault.reason is Reason.FILES_CORRUPT
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hashes", "project", "store"]


def test_pull_and_diff_name_what_they_do_not_find(store: Store, tmp_path: Path) -> None:
    with pytest.raises(FaultError, match="no revision or project 'deadbeef'"):
        pull_revision(store, "deadbeef", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_diff_tells_added_changed_and_deleted(store: Store, project: Path) -> None:
    first = push(store, project).revision
    (project / "a.txt").write_text("now this")
    (project / "b/c.txt").unlink()
    (project / "b/new").write_text("12")
    push(store, project)
    found = [(c.kind, c.path, c.size_bytes) for c in diff_revisions(store, first, "alice/churn")]
    assert found == [("changed", "a.txt", 8), ("deleted", "b/c.txt", 0), ("added", "b/new", 2)]


# -- ignore patterns -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("patterns", "path", "ignored"),
    [
        ("*.py[cod]", "a/b.pyc", True),
        ("/build", "build", True),
        ("/build", "a/build", False),
        ("build/", "a/build", False),
        ("a/**/z", "a/b/c/z", True),
        ("*.log\n!x.log", "x.log", False),
        (r"\#x", "#x", True),
        ("*test*data*", "mytestmydata.csv", True),
        ("data with space", "data with space", True),
        ("caf*", os.fsdecode(b"caf\xe9"), True),
    ],
)
def test_patterns_are_those_of_gitignore(patterns: str, path: str, ignored: bool) -> None:
    found = ignore.parse(patterns.encode())
    assert found.problems == ()
    assert found.matches(path, is_directory=False) is ignored


def test_a_pattern_for_directories_leaves_files_alone() -> None:
    assert ignore.parse(b"build/").matches("a/build", is_directory=True)


@pytest.mark.parametrize(
    "pattern", ["*a*a*a*b", "**/a/**/a/**/b", "*a*/**/*a*b", "!", "x" * 600, "*a*a*/*a*a*/b*"]
)
def test_a_pattern_that_could_hold_the_daemon_up_is_left_out_and_named(pattern: str) -> None:
    found = ignore.parse(f"fine\n{pattern}\n".encode())
    assert found.spec is not None
    assert len(found.problems) == 1
    assert "line 2" in found.problems[0]


@pytest.mark.parametrize("pattern", ["*a*a*", "*a*b", "**/a*/**/b", "*a/*a*b", "a*/a*/a*/a*b"])
@pytest.mark.parametrize("path", ["a" * 255, "a/" * 500 + "a", "/".join(["a" * 250] * 4)])
def test_what_is_let_through_is_decided_at_once(pattern: str, path: str) -> None:
    found = ignore.parse(pattern.encode())
    assert found.problems == ()
    began = os.times().user
    found.matches(path, is_directory=False)
    assert os.times().user - began < 0.1


def test_noise_as_patterns_never_fails() -> None:
    for noise in (b"\xff\xfe[", b"[", b"a[b", b"\\", b"***", b"\0", b"[!", b"[]", b"{", b"(?P<x>"):
        ignore.parse(noise).matches("a/b", is_directory=False)
    assert ignore.parse(b"x\n" * 200_000).spec is None
