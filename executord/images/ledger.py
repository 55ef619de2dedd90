"""Who uses which image, since when, and what it cost to get it."""

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Literal, Protocol

import structlog

from executord.core.run import Image
from executord.ports import Clock

log = structlog.get_logger(__name__)

KIND = "image"
MadeBy = Literal["local", "pulled", "built"]


class FactStore(Protocol):
    """The part of the journal that keeps small facts; what a method has returned is durable."""

    async def put_fact(self, kind: str, key: str, value: Mapping[str, object]) -> None: ...
    async def delete_fact(self, kind: str, key: str) -> None: ...
    async def facts(self, kind: str) -> Mapping[str, Mapping[str, object]]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """`key` is the environment's, or the image's id where it was not built here."""

    key: str
    reference: str
    image_id: str
    last_used: float
    made_by: MadeBy = "local"
    made_seconds: float = 0.0
    used_by: tuple[str, ...] = ()


class Ledger:
    """One record an image, read at the first need."""

    def __init__(self, facts: FactStore, clock: Clock) -> None:
        self._facts = facts
        self._clock = clock
        self._read: dict[str, Record] | None = None
        self._reading = asyncio.Lock()

    async def keep_only(self, live_runs: Collection[str]) -> None:
        """Let go of runs that are no more."""
        records = await self._records()
        for key in tuple(records):
            record = records[key]
            live = tuple(run_id for run_id in record.used_by if run_id in live_runs)
            if live != record.used_by:
                await self._put(records, replace(record, used_by=live))

    async def records(self) -> tuple[Record, ...]:
        return tuple((await self._records()).values())

    async def _records(self) -> dict[str, Record]:
        async with self._reading:
            if self._read is None:
                self._read = await self._load()
            return self._read

    async def _load(self) -> dict[str, Record]:
        found: dict[str, Record] = {}
        for key, value in (await self._facts.facts(KIND)).items():
            record = _record(key, value)
            if record is None:
                log.warning("images.record_unreadable", key=key)
                await self._facts.delete_fact(KIND, key)
            else:
                found[key] = record
        return found

    async def use(self, run_id: str, image: Image, *, made: tuple[MadeBy, float] | None) -> None:
        """Pin the image for a run. `made` says how it came here, and in how many seconds, if it
        just did.
        """
        records = await self._records()
        key = image.key or image.id
        now = self._clock.now()
        record = records.get(key) or Record(
            key=key, reference=image.reference, image_id=image.id, last_used=now
        )
        if made is not None:
            record = replace(record, made_by=made[0], made_seconds=made[1])
        users = record.used_by if run_id in record.used_by else (*record.used_by, run_id)
        record = replace(
            record,
            reference=image.reference,
            image_id=image.id,
            last_used=now,
            used_by=users,
        )
        await self._put(records, record)

    async def release(self, run_id: str) -> None:
        records = await self._records()
        for key in tuple(records):
            record = records[key]
            if run_id in record.used_by:
                left = tuple(user for user in record.used_by if user != run_id)
                now = self._clock.now()
                await self._put(records, replace(record, used_by=left, last_used=now))

    async def forget(self, key: str) -> None:
        if (await self._records()).pop(key, None) is not None:
            await self._facts.delete_fact(KIND, key)

    async def _put(self, records: dict[str, Record], record: Record) -> None:
        """Known at once, so that nothing comes between reading a record and changing it."""
        records[record.key] = record
        value = asdict(record)
        del value["key"]
        await self._facts.put_fact(KIND, record.key, value)


def _record(key: str, value: Mapping[str, object]) -> Record | None:
    """None for a fact that is not one of this version's."""
    users = value.get("used_by")
    made_by = value.get("made_by")
    last_used, made_seconds = value.get("last_used"), value.get("made_seconds")
    if (
        not isinstance(users, list | tuple)
        or made_by not in ("local", "pulled", "built")
        or not isinstance(last_used, int | float)
        or not isinstance(made_seconds, int | float)
    ):
        return None
    return Record(
        key=key,
        reference=str(value.get("reference", "")),
        image_id=str(value.get("image_id", "")),
        last_used=float(last_used),
        made_by=made_by,
        made_seconds=float(made_seconds),
        used_by=tuple(str(user) for user in users),
    )
