"""A process that writes objects out of packs into files: one interpreter's lock less to wait for.

`python -I -S unpack.py`, fed by `unpackers.py` alone; so it imports nothing but the standard
library's quickest parts. Each message, in and out, is 4 bytes of length (little-endian) and
marshalled data. It ends when its input does, or after some seconds without work.

In:  (pack's path, start, length, folder, uid, gid, objects), objects being
     (offset in the pack, size, SHA-256, name in the folder, mode); a uid of -1 changes no owner.
Out: (inodes, errno, path): for each object its inode, 0 where its bytes are not as they should be;
     errno is 0, or what ended the work.
"""

import errno
import hashlib
import marshal
import os
import select
import stat
import struct

IDLE_SECONDS = 20.0
_LENGTH = struct.Struct("<I")
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW

Objects = list[tuple[int, int, bytes, str, int]]


def unpack(  # noqa: PLR0917 - it is the message, spread out
    path: str, start: int, length: int, folder: str, uid: int, gid: int, objects: Objects
) -> tuple[list[int], int, str]:
    inodes: list[int] = []
    at = path
    try:
        pack = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            if not stat.S_ISREG(os.fstat(pack).st_mode):
                return inodes, errno.EINVAL, at  # whoever asked reads it in another way, and tells
            data = memoryview(os.pread(pack, length, start))
        finally:
            os.close(pack)
        at = folder
        folder_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for offset, size, digest, name, mode in objects:
                piece = data[offset - start :][:size]
                if hashlib.sha256(piece).digest() != digest:
                    inodes.append(0)
                    continue
                fd = os.open(name, _WRITE, mode, dir_fd=folder_fd)
                try:
                    written = os.write(fd, piece) if size else 0
                    while written < size:
                        written += os.write(fd, piece[written:])
                    if uid != -1:
                        os.fchown(fd, uid, gid)
                    inodes.append(os.fstat(fd).st_ino)
                finally:
                    os.close(fd)
        finally:
            os.close(folder_fd)
    except OSError as error:
        return inodes, error.errno or 5, at
    return inodes, 0, ""


def main() -> None:
    os.umask(0)
    while True:
        ready, _, _ = select.select([0], [], [], IDLE_SECONDS)
        if not ready:
            return
        head = _exactly(_LENGTH.size)
        if not head:
            return
        task = marshal.loads(_exactly(_LENGTH.unpack(head)[0]))  # noqa: S302 - from our own parent
        reply = marshal.dumps(unpack(*task))
        data = memoryview(_LENGTH.pack(len(reply)) + reply)
        while data:
            data = data[os.write(1, data) :]


def _exactly(length: int) -> bytes:
    pieces = []
    while length:
        piece = os.read(0, length)
        if not piece:
            return b""
        pieces.append(piece)
        length -= len(piece)
    return b"".join(pieces)


if __name__ == "__main__":
    main()
