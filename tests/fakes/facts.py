"""The journal's small facts, in memory."""

from collections.abc import Mapping


class FakeFacts:
    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], dict[str, object]] = {}

    async def put_fact(self, kind: str, key: str, value: Mapping[str, object]) -> None:
        self.kept[kind, key] = dict(value)

    async def delete_fact(self, kind: str, key: str) -> None:
        self.kept.pop((kind, key), None)

    async def facts(self, kind: str) -> Mapping[str, Mapping[str, object]]:
        return {key: value for (held, key), value in self.kept.items() if held == kind}
