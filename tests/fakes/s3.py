"""An S3 store on loopback, and a proxy before it that behaves as networks do."""

import itertools
import socket
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from moto.server import ThreadedMotoServer

REGION = "us-east-1"
_numbers = itertools.count()


@contextmanager
def s3_server() -> Iterator[str]:
    """Its URL; ends with the block."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def new_bucket(endpoint: str) -> str:
    """A fresh bucket's name."""
    name = f"bucket-{next(_numbers)}"
    request = urllib.request.Request(f"{endpoint}/{name}", method="PUT")
    urllib.request.urlopen(request, timeout=30).close()
    return name


def options(endpoint: str) -> dict[str, str]:
    """What config.example.toml tells to set for a store that is not Amazon's."""
    return {
        "endpoint": endpoint,
        "region": REGION,
        "access_key_id": "test",
        "secret_access_key": "test",
        "allow_http": "true",
    }


class BadNetwork:
    """A TCP proxy. `cut_after` ends each of the next `cuts` replies after so many bytes; `answers`
    are sent instead of the next replies; `swallow` requests are carried out and never answered.
    """

    def __init__(self, endpoint: str) -> None:
        host, port = endpoint.removeprefix("http://").split(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = "http://{}:{}".format(*self._listener.getsockname())
        self.cuts = 0
        self.cut_after = 0
        self.answers: list[bytes] = []
        self.swallow = 0
        self.requests: list[str] = []
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        """One request a connection: simpler, and allowed."""
        with client:
            request = _read_request(client)
            if not request:
                return
            with self._lock:
                self.requests.append(request.split(b"\r\n", 1)[0].decode())
                answer = self.answers.pop(0) if self.answers else None
                cut = self.cuts > 0 and request.startswith(b"GET")
                self.cuts -= cut
                swallowed = self.swallow > 0 and request.startswith(b"PUT")
                self.swallow -= swallowed
            if answer is not None:
                client.sendall(answer)
                return
            with socket.create_connection(self._target) as server:
                server.sendall(request)
                sent = 0
                while piece := server.recv(65536):
                    if swallowed:
                        continue
                    if cut and sent + len(piece) > self.cut_after:
                        client.sendall(piece[: self.cut_after - sent])
                        return
                    client.sendall(piece)
                    sent += len(piece)


def _read_request(client: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        piece = client.recv(65536)
        if not piece:
            return b""
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    length = 0
    lines = []
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
        if name.lower() != b"connection":
            lines.append(line)
    while len(body) < length:
        body += client.recv(65536)
    return b"\r\n".join([*lines, b"Connection: close"]) + b"\r\n\r\n" + body


BUSY = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
