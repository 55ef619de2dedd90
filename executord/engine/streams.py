"""Reads the engine's streams of JSON lines: progress of transfers, output of builds."""

import re
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from executord.core.reasons import Fault, FaultError, Reason
from executord.engine import errors
from executord.ports import BuildStep, Progress

_LONGEST_LINE_BYTES = 4 * 1024 * 1024
_KEPT_LINES = 20
_KEPT_LINE_CHARACTERS = 400
_STEP = re.compile(r"Step (\d{1,6})/(\d{1,6}) : (.*)", re.DOTALL)
_COMMAND_FAILED = "returned a non-zero code"


class LineSplitter:
    """Cuts pieces of any size into whole lines; ValueError when one has no end."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that are complete now, without their ends; empty ones are left out."""
        self._rest += data
        if b"\n" not in data:
            if len(self._rest) > _LONGEST_LINE_BYTES:
                raise ValueError("a line of the reply has no end")
            return []
        *lines, self._rest = self._rest.split(b"\n")
        return [bytes(line) for line in lines if line.strip()]


def stream_error(event: Mapping[str, Any]) -> tuple[int, str] | None:
    """Code and message of a line that tells of an error."""
    detail = event.get("errorDetail")
    if isinstance(detail, dict) and detail.get("message"):
        return int(detail.get("code") or 0), str(detail["message"])
    if event.get("error"):
        return 0, str(event["error"])
    return None


@dataclass(slots=True)
class _Layer:
    done: int = 0
    total: int = 0


@dataclass(slots=True)
class TransferProgress:
    """Adds up the layers of a pull or push; bytes are those that go over the network."""

    what: str
    layers: dict[str, _Layer] = field(default_factory=dict)
    has_ended: bool = False

    def feed(self, event: Mapping[str, Any]) -> Progress:
        status = str(event.get("status") or "")
        layer_id = str(event.get("id") or "")
        progress = event.get("progressDetail")
        if status.startswith(("Status: ", "Digest: ")) or "aux" in event:
            self.has_ended = True
        if status in ("Downloading", "Pushing") and isinstance(progress, dict):
            layer = self.layers.setdefault(layer_id, _Layer())
            layer.done = int(progress.get("current") or 0)
            layer.total = max(int(progress.get("total") or 0), layer.done)
        elif status in ("Download complete", "Pushed", "Pull complete") and layer_id in self.layers:
            self.layers[layer_id].done = self.layers[layer_id].total
        return Progress(
            what=self.what,
            bytes_done=sum(layer.done for layer in self.layers.values()),
            bytes_total=sum(layer.total for layer in self.layers.values()),
            detail=f"{layer_id}: {status}" if layer_id else status,
        )


class BuildOutput:
    """Follows a classic build: at which step it is, what it printed last, whether it ended."""

    def __init__(self) -> None:
        self.step = 0
        self.steps = 0
        self.instruction = ""
        self.has_ended = False
        self._last_lines: deque[str] = deque(maxlen=_KEPT_LINES)

    def feed(self, event: Mapping[str, Any]) -> BuildStep | None:
        """FaultError when the event tells that the build has failed."""
        if error := stream_error(event):
            raise self.fault(*error)
        if "aux" in event:
            self.has_ended = True
        text = str(event.get("stream") or _status_line(event))
        if not text:
            return None
        self._note(text)
        output = text.encode("utf-8", "surrogateescape")
        return BuildStep(output=output, step=self.step, steps=self.steps)

    def _note(self, text: str) -> None:
        match = _STEP.fullmatch(text)
        # What a RUN prints ends its lines; the builder's own headline does not.
        if match and not text.endswith("\n") and int(match[1]) == self.step + 1:
            self.step, self.steps, self.instruction = int(match[1]), int(match[2]), match[3]
        for line in text.splitlines():
            if line.strip():
                self._last_lines.append(line.rstrip()[:_KEPT_LINE_CHARACTERS])

    def fault(self, code: int, message: str) -> FaultError:
        """Whose side a failed build is on; `code` is the failed command's exit code, or 0."""
        if _COMMAND_FAILED not in message:
            elsewhere = self._fault_elsewhere(message)
            if elsewhere is not None:
                return elsewhere
        where = f"Step {self.step}/{self.steps} : {self.instruction[:200]}" if self.step else ""
        evidence: dict[str, str | int] = {
            "step": self.step,
            "steps": self.steps,
            "instruction": self.instruction[:_KEPT_LINE_CHARACTERS],
            "engine_message": message[:_KEPT_LINE_CHARACTERS],
            "last_lines": "\n".join(self._last_lines),
        }
        if code:
            evidence["exit_code"] = code
        said = [f"{where} failed: {message}" if where else message, *self._last_output()]
        return FaultError(Fault(Reason.BUILD_FAILED, "\n".join(said), evidence))

    def _last_output(self) -> list[str]:
        """The last lines, without those that the builder itself prints around a step."""
        own = ("Step ", " --->", "Removing intermediate container")
        return [line for line in self._last_lines if not line.startswith(own)][-5:]

    def _fault_elsewhere(self, message: str) -> FaultError | None:
        doing = f"build the environment at `{self.instruction[:200]}`"
        if self._fetches_an_image():
            fault = errors.of_registry(doing, 0, message)
        else:
            fault = errors.of_reply(doing, 0, message)
        return None if fault.fault.reason is Reason.ENGINE_REFUSED else fault

    def _fetches_an_image(self) -> bool:
        instruction = self.instruction.upper()
        return instruction.startswith("FROM ") or "--FROM=" in instruction


def _status_line(event: Mapping[str, Any]) -> str:
    """What a build says of the pull of a base: without the bars that redraw themselves."""
    status = str(event.get("status") or "")
    if not status or event.get("progress"):
        return ""
    layer = str(event.get("id") or "")
    return f"{layer}: {status}\n" if layer else f"{status}\n"
