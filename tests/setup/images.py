"""
The two images that tests and demo run: `executord-test/busybox:1` and `executord-test/python:3.11`.

Where a registry can be reached they are made from the usual ones; else offline, from Debian's
packages, with Python's standard library and busybox. Both know the user `runner`, uid 1000. A label
says what an image was made from, so that one that is there already is used as it is.
"""

from __future__ import annotations

import compileall
import hashlib
import io
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

from tests.setup import apt
from tests.setup.docker_http import EngineError, EngineHttp
from tests.setup.state import DevFolder, SetupError, locked, say

if TYPE_CHECKING:
    from collections.abc import Sequence

RECIPE = 1  # one more whenever what the code below makes of the packages changes
LABEL = "executord.test.made-from"
REGISTRY = ("registry-1.docker.io", 443)
REACH_SECONDS = 5.0
SEARCH_PATH = "/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin"
PASSWD = "root:x:0:0:root:/root:/bin/sh\nrunner:x:1000:1000:runner:/home/runner:/bin/sh\n"
GROUP = "root:x:0:\nrunner:x:1000:\n"
PYTHON_PACKAGES = (
    "python3.11-minimal",
    "libpython3.11-minimal",
    "libpython3.11-stdlib",
    "libc6",
    "libgcc-s1",
    "libcrypt1",
    "zlib1g",
    "libexpat1",
    "libssl3",
    "libffi8",
    "libbz2-1.0",
    "liblzma5",
    "libsqlite3-0",
    "libuuid1",
    "libtinfo6",
    "libncursesw6",
    "libreadline8",
)
NOT_NEEDED = ("usr/share/doc", "usr/share/man", "usr/share/lintian", "usr/share/locale")


@dataclass(frozen=True)
class Image:
    """`base` is what it is made of with a registry, `packages` without."""

    name: str
    base: str
    packages: tuple[str, ...]

    @property
    def made_from(self) -> str:
        """A digest of this recipe: another one makes another image."""
        recipe = [str(RECIPE), self.name, self.base, *self.packages, SEARCH_PATH, PASSWD, GROUP]
        return hashlib.sha256("\0".join(recipe).encode()).hexdigest()[:16]


IMAGES = (
    Image("executord-test/busybox:1", "busybox:1.36", ("busybox-static",)),
    Image("executord-test/python:3.11", "python:3.11-slim", ("busybox-static", *PYTHON_PACKAGES)),
)


def ensure(engine: EngineHttp, folder: DevFolder) -> None:
    """Make sure that the engine holds both images, each made of today's recipe."""
    if all(_is_there(engine, image) for image in IMAGES):
        return
    with locked(folder.lock_file("images")):
        missing = [image for image in IMAGES if not _is_there(engine, image)]
        registry = bool(missing) and _registry_is_reachable()
        for image in missing:
            if not (registry and _make_from_registry(engine, image)):
                _make_from_packages(engine, image, folder)


def _is_there(engine: EngineHttp, image: Image) -> bool:
    try:
        found = engine.get(f"/images/{image.name}/json")
    except EngineError as error:
        if error.status == HTTPStatus.NOT_FOUND:
            return False
        raise SetupError(f"the engine cannot tell about its images: {error}; restart it") from error
    labels = (found.get("Config") or {}).get("Labels") or {}
    return bool(labels.get(LABEL) == image.made_from)


def _registry_is_reachable() -> bool:
    try:
        socket.create_connection(REGISTRY, timeout=REACH_SECONDS).close()
    except OSError:
        return False
    return True


def _make_from_registry(engine: EngineHttp, image: Image) -> bool:
    """Build on the usual base; False, said aloud, when the registry does not give it."""
    say(f"making {image.name} from {image.base}")
    recipe = (
        f"FROM {image.base}\n"
        f"LABEL {LABEL}={image.made_from}\n"
        f"RUN echo '{PASSWD.splitlines()[1]}' >>/etc/passwd"
        f" && echo '{GROUP.splitlines()[1]}' >>/etc/group"
        " && mkdir -p /home/runner && chown 1000:1000 /home/runner\n"
    )
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as tar:
        _add_file(tar, "Dockerfile", recipe.encode())
    context.seek(0)
    try:
        engine.post_stream("/build", [("t", image.name), ("rm", "true")], context)
    except EngineError as error:
        say(f"no {image.base} from the registry ({error}); making it from Debian packages")
        return False
    return True


def _make_from_packages(engine: EngineHttp, image: Image, folder: DevFolder) -> None:
    archive = (
        folder.images / f"{image.name.replace('/', '-').replace(':', '-')}-{image.made_from}.tar"
    )
    if not archive.exists():
        _make_archive(image, archive, folder)
    say(f"loading {image.name} into the engine")
    repository, _, tag = image.name.partition(":")
    changes = (f"ENV PATH={SEARCH_PATH}", 'CMD ["sh"]', f"LABEL {LABEL}={image.made_from}")
    query = [("fromSrc", "-"), ("repo", repository), ("tag", tag)]
    query += [("changes", change) for change in changes]
    try:
        with archive.open("rb") as tar:
            engine.post_stream("/images/create", query, tar)
    except EngineError as error:
        raise SetupError(
            f"the engine does not take {archive}: {error}; free disk space or remove the file"
        ) from error


def _make_archive(image: Image, archive: Path, folder: DevFolder) -> None:
    """Leave the image's file system as a tar, complete or not at all."""
    with tempfile.TemporaryDirectory(dir=folder.images, prefix="tree-") as name:
        tree = Path(name) / "tree"
        tree.mkdir()
        for package in _packages(image.packages, folder):
            subprocess.run(["dpkg-deb", "-x", str(package), str(tree)], check=True)
        say(f"building {image.name} offline from Debian packages")
        _complete(tree)
        unfinished = Path(name) / "image.tar"
        with tarfile.open(unfinished, "w") as tar:
            tar.add(tree, arcname=".", filter=_owned_by_root)
            _add_skeleton(tar)
        unfinished.rename(archive)


def _packages(names: Sequence[str], folder: DevFolder) -> list[Path]:
    """Give a .deb file for each name, downloading what is not here."""
    missing = [name for name in names if not _deb_files(name, folder)]
    if missing:
        with tempfile.TemporaryDirectory(dir=folder.debs, prefix="new-") as fresh:
            apt.download(missing, Path(fresh))
            for deb in Path(fresh).glob("*.deb"):
                deb.rename(folder.debs / deb.name)
    return [_deb_files(name, folder)[-1] for name in names]


def _deb_files(name: str, folder: DevFolder) -> list[Path]:
    return sorted(folder.debs.glob(f"{name}_*.deb"))


def _complete(tree: Path) -> None:
    """Drop what no test needs, put busybox's commands and Python's names on the path."""
    for path in NOT_NEEDED:
        shutil.rmtree(tree / path, ignore_errors=True)
    commands = subprocess.run(
        [tree / "bin/busybox", "--list"], check=True, capture_output=True, text=True
    ).stdout.split()
    for command in commands:
        link = tree / "bin" / command
        if not link.exists():
            link.symlink_to("busybox")
    if (tree / "usr/bin/python3.11").exists():
        for alias in ("python", "python3"):
            (tree / "usr/bin" / alias).symlink_to("python3.11")
        _compile(tree)


def _compile(tree: Path) -> None:
    """Compile the standard library, so that a container's Python starts as fast as elsewhere."""
    if sys.implementation.cache_tag == "cpython-311":
        library = tree / "usr/lib/python3.11"
        compileall.compile_dir(library, quiet=2, stripdir=str(tree), prependdir="/", workers=0)


def _owned_by_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member


def _add_skeleton(tar: tarfile.TarFile) -> None:
    _add_folder(tar, "tmp", mode=0o1777)
    _add_folder(tar, "root", mode=0o700)
    _add_folder(tar, "mnt", mode=0o755)
    _add_folder(tar, "home/runner", mode=0o755, owner=1000)
    _add_file(tar, "etc/passwd", PASSWD.encode())
    _add_file(tar, "etc/group", GROUP.encode())


def _add_folder(tar: tarfile.TarFile, name: str, *, mode: int, owner: int = 0) -> None:
    member = tarfile.TarInfo(name)
    member.type, member.mode = tarfile.DIRTYPE, mode
    member.uid = member.gid = owner
    tar.addfile(member)


def _add_file(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    member.mode = 0o644
    tar.addfile(member, io.BytesIO(content))
