"""Trees, revisions and digests: canonical, and strict about what is not."""

import os

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from executord.core.reasons import FaultError, Reason
from executord.files.model import digests, revisions, trees
from executord.files.model.closure import load
from executord.files.model.diff import diff
from executord.files.model.trees import EMPTY_TREE, BadTreeError, Entry, Kind, Tree
from executord.ports import Revision

DIGEST = digests.of_bytes(b"x")

names = (
    st.binary(min_size=1, max_size=20)
    .filter(lambda raw: b"/" not in raw and b"\0" not in raw and raw not in (b".", b".."))
    .map(os.fsdecode)
)
leaves = st.one_of(
    st.builds(
        lambda name, size, executable: trees.file_entry(name, DIGEST, size, executable=executable),
        names,
        st.integers(0, 1 << 50),
        st.booleans(),
    ),
    st.builds(trees.link_entry, names, names),
    st.builds(lambda name: trees.directory_entry(name, EMPTY_TREE, ()), names),
)


class InMemory:
    def __init__(self, *objects: bytes) -> None:
        self.objects = {digests.of_bytes(data): data for data in objects}

    def tree(self, digest: str) -> Tree:
        return trees.decode(self.objects[digest]) if digest != EMPTY_TREE else ()


@given(st.lists(leaves, unique_by=lambda entry: entry.name), st.randoms())
def test_a_tree_comes_back_as_it_was_and_its_order_does_not_matter(
    entries: list[Entry], random: object
) -> None:
    digest, data = trees.encode(entries)
    shuffled = list(entries)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert trees.encode(shuffled) == (digest, data)
    assert sorted(trees.decode(data), key=lambda e: e.name) == sorted(entries, key=lambda e: e.name)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\0b", "x" * 256, "ä" * 128])
def test_a_name_that_leads_elsewhere_is_no_name(name: str) -> None:
    with pytest.raises(BadTreeError):
        trees.encode([trees.file_entry(name, DIGEST, 1, executable=False)])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"entries": []}',
        '{"entries":[],"more":1}',
        '{"entries":[{"kind":"file","name":"..","digest":"D"}]}',
        '{"entries":[{"kind":"file","name":"a/b","digest":"D"}]}',
        '{"entries":[{"kind":"file","name":"a\\u0000","digest":"D"}]}',
        '{"entries":[{"kind":"file","name":"a","digest":"sha256:zz"}]}',
        '{"entries":[{"kind":"file","name":"a","digest":"D","size":-1}]}',
        '{"entries":[{"kind":"device","name":"a","digest":"D"}]}',
        (
            '{"entries":[{"kind":"file","name":"b","digest":"D"},'
            '{"kind":"file","name":"a","digest":"D"}]}'
        ),
        (
            '{"entries":[{"kind":"file","name":"a","digest":"D"},'
            '{"kind":"file","name":"a","digest":"D"}]}'
        ),
        '{"entries":[{"kind":"file","name":"a","digest":"D","target":"x"}]}',
        '{"entries":[{"kind":"file","name":"a","digest":"D","count":3}]}',
        '{"entries":[{"kind":"link","name":"a","size":1}]}',
        '{"entries":[{"kind":"link","name":"a","size":9,"target":"x"}]}',
        '{"entries":[{"kind":"link","name":"a","digest":"D","size":1,"target":"x"}]}',
        '{"entries":[{"kind":"file","raw":"YQ==","digest":"D"}]}',
        '{"entries":[{"kind":"file","name":"a","raw":"6Q==","digest":"D"}]}',
        '{"entries":[{"kind":"file","raw":"Ly4u","digest":"D"}]}',
        '{"entries":[{"kind":"file","raw":"!!","digest":"D"}]}',
        '{"entries":[{"name":"a","kind":"file","digest":"D"}]}',
        '{"entries":[{"kind":"file","name":"a","digest":"D","size":0}]}',
        "[" * 100_000,
    ],
)
def test_what_is_not_a_tree_in_canonical_form_is_refused(text: str) -> None:
    with pytest.raises(BadTreeError):
        trees.decode(text.replace('"D"', f'"{DIGEST}"').encode())


def test_names_are_kept_byte_by_byte() -> None:
    name = os.fsdecode(b"caf\xe9")
    _, data = trees.encode([trees.link_entry(name, os.fsdecode(b"\xff/x"))])
    assert b"raw" in data
    (entry,) = trees.decode(data)
    assert os.fsencode(entry.name) == b"caf\xe9"
    assert os.fsencode(entry.target) == b"\xff/x"


def test_only_what_is_in_the_tree_makes_its_digest() -> None:
    """Kept from version to version: stores out there hold these digests."""
    digest, data = trees.encode(
        [
            trees.file_entry("a", digests.EMPTY, 0, executable=False),
            trees.link_entry("l", "a"),
            trees.directory_entry("d", EMPTY_TREE, ()),
        ]
    )
    assert data == (
        b'{"entries":[{"kind":"file","name":"a","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427'
        b'ae41e4649b934ca495991b7852b855"},{"kind":"directory","name":"d","digest":"'
        + EMPTY_TREE.encode()
        + b'"},{"kind":"link","name":"l","size":1,"target":"a"}]}'
    )
    assert trees.EMPTY_TREE_BYTES == b'{"entries":[]}'
    assert digest == digests.of_bytes(data)


@given(st.binary(max_size=200))
def test_noise_is_never_a_tree(noise: bytes) -> None:
    try:
        entries = trees.decode(noise)
    except BadTreeError:
        return
    assert trees.encode(entries)[1] == noise


# -- revisions -----------------------------------------------------------------------------------


def test_a_revision_comes_back_as_it_was() -> None:
    revision = Revision(
        tree=EMPTY_TREE, parent=DIGEST, author="a", message="ü", time=12.5, run="r-1"
    )
    digest, data = revisions.encode(revision)
    assert digest == digests.of_bytes(data)
    assert revisions.decode(data) == revision


def test_a_revision_of_a_later_version_can_still_be_read() -> None:
    data = msgspec.json.encode({"tree": EMPTY_TREE, "mid_run": True})
    assert revisions.decode(data).tree == EMPTY_TREE


@pytest.mark.parametrize(
    "value", [{}, {"tree": "x"}, {"tree": EMPTY_TREE, "parent": "../.."}, [], "x"]
)
def test_what_is_not_a_revision_is_refused(value: object) -> None:
    with pytest.raises(revisions.BadRevisionError):
        revisions.decode(msgspec.json.encode(value))


def test_a_message_that_is_no_text_does_not_break_a_revision() -> None:
    _, data = revisions.encode(Revision(tree=EMPTY_TREE, message="\udcff" + "m" * 10_000))
    assert len(revisions.decode(data).message) == 4096


# -- what is below a tree ------------------------------------------------------------------------


def test_the_totals_of_a_tree_count_every_occurrence() -> None:
    leaf = trees.encode([trees.file_entry("f", DIGEST, 10, executable=False)])
    entries = trees.decode(leaf[1])
    root = trees.encode([trees.directory_entry(name, leaf[0], entries) for name in "abc"])
    source = InMemory(leaf[1], root[1])
    closure = load(root[0], lambda wanted: {digest: source.tree(digest) for digest in wanted})
    assert (closure.files, closure.bytes) == (3, 30)
    assert len(closure.trees) == 2
    assert len(closure.blobs) == 1


def test_a_small_graph_that_unfolds_into_millions_is_refused_before_anything_is_made() -> None:
    objects = []
    digest, data = trees.encode([trees.file_entry("f", DIGEST, 1, executable=False)])
    entries: Tree = trees.decode(data)
    objects.append(data)
    for _ in range(30):
        entries = [trees.directory_entry(name, digest, entries) for name in "ab"]
        digest, data = trees.encode(entries)
        objects.append(data)
    source = InMemory(*objects)
    with pytest.raises(FaultError, match="more than"):
        load(digest, lambda wanted: {each: source.tree(each) for each in wanted})


def test_a_directory_that_lies_about_its_size_is_refused() -> None:
    leaf = trees.encode([trees.file_entry("f", DIGEST, 10, executable=False)])
    lie = Entry(kind=Kind.DIRECTORY, name="d", digest=leaf[0], size=1, count=1)
    root = trees.encode([lie])
    source = InMemory(leaf[1], root[1])
    with pytest.raises(FaultError) as caught:
        load(root[0], lambda wanted: {each: source.tree(each) for each in wanted})
    assert caught.value.fault.reason is Reason.FILES_CORRUPT


# -- differences ---------------------------------------------------------------------------------


def changes(before: bytes, after: bytes, *others: bytes) -> list[tuple[str, str]]:
    source = InMemory(before, after, *others)
    found = diff(source, digests.of_bytes(before), digests.of_bytes(after))
    return sorted((change.path, change.kind) for change in found)


def test_a_file_that_becomes_a_directory_is_deleted_and_what_is_below_it_added() -> None:
    inner = trees.encode([trees.link_entry("l", "t")])
    before = trees.encode([trees.file_entry("a", DIGEST, 1, executable=False)])
    after = trees.encode([trees.directory_entry("a", inner[0], trees.decode(inner[1]))])
    assert changes(before[1], after[1], inner[1]) == [("a", "deleted"), ("a/l", "added")]
    assert changes(after[1], before[1], inner[1]) == [("a", "added"), ("a/l", "deleted")]


def test_the_executable_bit_alone_is_a_change() -> None:
    before = trees.encode([trees.file_entry("a", DIGEST, 1, executable=False)])
    after = trees.encode([trees.file_entry("a", DIGEST, 1, executable=True)])
    assert changes(before[1], after[1]) == [("a", "changed")]


def test_an_empty_directory_is_named_with_a_slash() -> None:
    after = trees.encode([trees.directory_entry("d", EMPTY_TREE, ())])
    assert changes(trees.EMPTY_TREE_BYTES, after[1]) == [("d/", "added")]
    assert changes(after[1], trees.EMPTY_TREE_BYTES) == [("d/", "deleted")]
