"""What tests of consoles share: reading one whole, and masking by the plainest means."""

import re
from collections.abc import Sequence

from executord.console.reading import ConsoleReader
from executord.console.segments import Segments
from executord.ports import ConsoleRecord, Stream


def everything(
    segments: Segments, since: int = 0, stream: Stream | None = None
) -> list[ConsoleRecord]:
    reader = ConsoleReader(segments, since=since, stream=stream)
    found: list[ConsoleRecord] = []
    while records := reader.next_records():
        found += records
    reader.close()
    return found


def text_of(records: Sequence[ConsoleRecord]) -> bytes:
    return b"".join(record.data for record in records)


def assert_without_jumps(records: Sequence[ConsoleRecord], since: int = 0) -> None:
    at = since
    for record in records:
        assert record.offset == at
        at = record.end


def masked_by_hand(text: bytes, secrets: tuple[bytes, ...]) -> bytes:
    covered = bytearray(len(text))
    for secret in secrets:
        for match in re.finditer(b"(?=" + re.escape(secret) + b")", text):
            covered[match.start() : match.start() + len(secret)] = b"\1" * len(secret)
    out = bytearray()
    for at, byte in enumerate(text):
        if not covered[at]:
            out.append(byte)
        elif at == 0 or not covered[at - 1]:
            out += b"***"
    return bytes(out)
