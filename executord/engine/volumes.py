"""Making and removing the volumes that runs' working directories and datasets are mounted from."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from executord.engine import errors
from executord.engine.address import checked_name
from executord.engine.spec import (
    bind_volume_config,
    overlay_volume_config,
    read_only_volume_config,
)
from executord.engine.wire import StatusError, Wire


class VolumeCalls(ABC):
    """Part of ports.Engine. Each call may be repeated; faults are the engine's."""

    @property
    @abstractmethod
    def _wire(self) -> Wire: ...

    @abstractmethod
    def _asking(self, doing: str) -> AbstractAsyncContextManager[None]:
        """Put a deadline on short calls, and turn whatever goes wrong into a fault."""

    async def create_overlay_volume(
        self,
        name: str,
        *,
        lower: Sequence[Path],
        upper: Path,
        work: Path,
        labels: Mapping[str, str],
    ) -> None:
        config = overlay_volume_config(
            checked_name(name), lower=lower, upper=upper, work=work, labels=labels
        )
        await self._make_volume(config)

    async def create_bind_volume(
        self, name: str, *, directory: Path, labels: Mapping[str, str]
    ) -> None:
        await self._make_volume(
            bind_volume_config(checked_name(name), directory=directory, labels=labels)
        )

    async def create_read_only_volume(
        self, name: str, *, lower: Sequence[Path], labels: Mapping[str, str]
    ) -> None:
        config = read_only_volume_config(checked_name(name), lower=lower, labels=labels)
        await self._make_volume(config)

    async def _make_volume(self, config: Mapping[str, Any]) -> None:
        name = config["Name"]
        doing = f"make volume `{name}`"
        made = await self._create_volume(doing, config)
        if (made.get("Labels") or {}) != config["Labels"]:
            raise errors.refused(doing, "there is one of this name that is somebody else's.")
        if (made.get("Options") or {}) != config["DriverOpts"]:
            await self.remove_volume(name)
            await self._create_volume(doing, config)

    async def _create_volume(self, doing: str, config: Mapping[str, Any]) -> dict[str, Any]:
        """The volume as it is; one that is there already stays what it was."""
        async with self._asking(doing):
            volume: dict[str, Any] = await self._wire.post_json("volumes/create", config)
            return volume

    async def remove_volume(self, name: str) -> None:
        checked_name(name)
        async with self._asking(f"remove volume `{name}`"):
            try:
                await self._wire.delete(f"volumes/{name}")
            except StatusError as error:
                if error.status != 404:
                    raise
