"""Headers for the upstream from a file, such as its access token. Values are never shown."""

import os
import re
import stat
from pathlib import Path
from typing import NamedTuple

_LONGEST_BYTES = 64 * 1024
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")
_VALUE = re.compile(r"[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?")
_OURS = frozenset(
    {
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "host",
        "transfer-encoding",
    }
)


class HeadersError(ValueError):
    """The file cannot be used; the message is a sentence that names it and the line."""


class _Version(NamedTuple):
    device: int
    inode: int
    size: int
    changed_ns: int


class HeadersFile:
    """Lines `Name: value`; empty lines and lines that begin with # are skipped.

    Only its owner (root, or the daemon's user) may write it, and nobody but owner and group may
    read it. It is read again when it has changed. All of it blocks: for a thread.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._version: _Version | None = None
        self._headers: dict[str, str] = {}

    def read(self) -> dict[str, str]:
        """HeadersError where it is missing, not safe, or not understood."""
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            fd = os.open(self._path, flags)
        except OSError as error:
            raise HeadersError(f"{self._path} cannot be read: {error.strerror}.") from error
        try:
            status = os.fstat(fd)
            self._check(status)
            version = _Version(
                status.st_dev,
                status.st_ino,
                status.st_size,
                max(status.st_mtime_ns, status.st_ctime_ns),
            )
            if version != self._version:
                self._headers = self._parse(os.read(fd, _LONGEST_BYTES))
                self._version = version
        finally:
            os.close(fd)
        return self._headers

    def _check(self, status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode):
            raise HeadersError(f"{self._path} is not a regular file.")
        if status.st_uid not in (0, os.geteuid()):
            raise HeadersError(f"{self._path} belongs to somebody else (uid {status.st_uid}).")
        if status.st_mode & (stat.S_IWGRP | stat.S_IRWXO):
            raise HeadersError(
                f"{self._path} may hold secrets and is open to others: `chmod 0640` it."
            )
        if status.st_size > _LONGEST_BYTES:
            raise HeadersError(f"{self._path} is longer than {_LONGEST_BYTES} bytes.")

    def _parse(self, content: bytes) -> dict[str, str]:
        headers: dict[str, str] = {}
        for number, line in enumerate(content.decode("latin-1").split("\n"), start=1):
            text = line.strip(" \t\r")
            if not text or text.startswith("#"):
                continue
            name, colon, value = text.partition(":")
            value = value.strip(" \t")
            if not colon or not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
                raise HeadersError(f"{self._path}, line {number}: not of the form `Name: value`.")
            if name.lower() in _OURS:
                raise HeadersError(f"{self._path}, line {number}: {name} is set by executord.")
            headers[name] = value
        return headers
