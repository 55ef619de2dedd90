"""What a person sees while a run lives: one line a change, and bars where a terminal can draw."""

import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from executord.cli.client import JsonObject
from executord.cli.console import ConsoleWriter, can_draw
from executord.cli.describe import (
    costs_words,
    end_lines,
    entered_state,
    exit_code_of,
    pace_words,
    path_of,
    total_seconds,
)
from executord.cli.output import CHANGES, STATE_STYLES, is_coloured, styled
from executord.cli.resume import Record
from executord.cli.terminal import safe
from executord.cli.units import clock, duration, size

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


_MOST_CHANGES = 10


class View(Protocol):
    """Where a followed run shows itself. `progress` maps a stage's name to how far it has come."""

    def console(self, record: Record) -> None: ...
    def transition(self, row: JsonObject) -> None: ...
    def progress(self, stages: Mapping[str, JsonObject]) -> None: ...
    def note(self, text: str) -> None: ...
    def end(self, run: JsonObject, changes: Sequence[JsonObject] = ()) -> None: ...
    def close(self) -> None: ...


class PlainView:
    """One line on stderr for each change; the console in between."""

    def __init__(
        self, *, raw: bool = False, quiet: bool = False, console_to_stderr: bool = False
    ) -> None:
        self._quiet = quiet
        self._colour = is_coloured(sys.stderr)
        self._writer = ConsoleWriter(
            raw=raw, only_to_stderr=console_to_stderr, before_write=self._clear
        )

    def console(self, record: Record) -> None:
        self._writer.write(record)

    def transition(self, row: JsonObject) -> None:
        state = entered_state(row)
        words = [costs_words(row.get("costs") or ()), str(row.get("detail") or "")]
        text = safe("; ".join(word for word in words if word))
        self._say(f"[{clock(row.get('time'))} {self._state(state)}] {text}".rstrip())

    def progress(self, stages: Mapping[str, JsonObject]) -> None:
        """Lines that are not redrawn would only fill a log."""

    def note(self, text: str) -> None:
        self._say(safe(text))

    def end(self, run: JsonObject, changes: Sequence[JsonObject] = ()) -> None:
        """How it ended; `changes` are the files that the run has changed."""
        self._writer.end()
        seconds, code = total_seconds(run), exit_code_of(run)
        head = f"{safe(run.get('id', ''))} {self._state(str(run.get('state', '')))}"
        head += "" if seconds is None else f" after {duration(seconds)}"
        head += "" if code is None else f" (exit code {code})"
        self._say(head)
        for name, value in end_lines(run):
            self._say(f"  {self._styled(f'{name}:'.ljust(12), 'dim')} {value}")
        for change in changes[:_MOST_CHANGES]:
            mark, style = CHANGES.get(str(change.get("kind")), ("?", ""))
            self._say(f"{'':15} {self._styled(mark, style)} {safe(path_of(change))}")
        if len(changes) > _MOST_CHANGES:
            self._say(f"{'':15} … `executorctl files {safe(run.get('id', ''))}` lists all of them")

    def close(self) -> None:
        self._writer.end()
        self._writer.finish_line()

    def _say(self, text: str) -> None:
        if not self._quiet:
            self._clear()
            self._writer.finish_line()
            print(text, file=sys.stderr, flush=True)

    def _state(self, state: str) -> str:
        return self._styled(safe(state), STATE_STYLES.get(state, "bold"))

    def _styled(self, text: str, style: str) -> str:
        return styled(text, style) if self._colour else text

    def _clear(self) -> None:
        """Take away what is drawn, since something is about to be written."""


class DrawingView(PlainView):
    """As PlainView, with bars below the last line for the stages that are being worked on."""

    def __init__(
        self, *, raw: bool = False, quiet: bool = False, console_to_stderr: bool = False
    ) -> None:
        super().__init__(raw=raw, quiet=quiet, console_to_stderr=console_to_stderr)
        self._bars = Bars()

    def progress(self, stages: Mapping[str, JsonObject]) -> None:
        if self._writer.at_line_start:
            self._bars.show(stages)

    def close(self) -> None:
        self._bars.clear()
        super().close()

    def _clear(self) -> None:
        self._bars.clear()


class Bars:
    """Progress bars on stderr, one a stage; drawn on demand, gone without a trace."""

    def __init__(self) -> None:
        self._drawn: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._since: dict[str, float] = {}

    def show(self, stages: Mapping[str, JsonObject]) -> None:
        now = time.monotonic()
        self._since = {name: self._since.get(name, now) for name in stages}
        if not stages:
            self.clear()
            return
        if self._drawn is None:
            self._drawn = _new_bars()
            self._drawn.start()
        for name in self._tasks.keys() - stages.keys():
            self._drawn.remove_task(self._tasks.pop(name))
        for name, stage in stages.items():
            if name not in self._tasks:
                self._tasks[name] = self._drawn.add_task("", total=None, words="")
            done, total = _extent(stage)
            self._drawn.update(
                self._tasks[name],
                description=safe(stage.get("what") or name),
                completed=done,
                total=total,
                words=safe(_amounts(stage, now - self._since[name])),
            )
        self._drawn.refresh()

    def clear(self) -> None:
        if self._drawn is not None:
            self._drawn.stop()
            self._drawn = None
            self._tasks.clear()


def _new_bars() -> "Progress":
    from rich.console import Console  # noqa: PLC0415 - slow to import, only for terminals
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
    )

    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[words]}", markup=False),
        console=Console(stderr=True, highlight=False),
        auto_refresh=False,
        transient=True,
    )


def _extent(stage: JsonObject) -> tuple[float, float | None]:
    """How much is done of how much, by the first measure that the stage knows; None: unknown."""
    for measure in ("bytes", "files"):
        total = stage.get(f"{measure}_total") or 0
        if total:
            return float(stage.get(f"{measure}_done") or 0), float(total)
    if stage.get("steps"):
        return float(stage.get("step") or 0), float(stage["steps"])
    return 0.0, None


def _amounts(stage: JsonObject, seconds: float) -> str:
    words = [duration(float(int(seconds)))] if seconds >= 1 else []
    if stage.get("steps"):
        words.append(f"step {stage.get('step', 0)} of {stage['steps']}")
    if stage.get("files_total"):
        words.append(f"{stage.get('files_done', 0):,} of {stage['files_total']:,} files")
    if stage.get("bytes_total"):
        words.append(f"{size(stage.get('bytes_done', 0))} of {size(stage['bytes_total'])}")
    elif stage.get("bytes_done"):
        words.append(size(stage["bytes_done"]))
    words += pace_words(stage)
    if stage.get("detail"):
        words.append(str(stage["detail"])[:60])
    return ", ".join(words)


def make_view(*, raw: bool, quiet: bool, as_json: bool) -> PlainView:
    """With `as_json` stdout belongs to the JSON document, so the console goes to stderr."""
    kind = DrawingView if can_draw(sys.stderr) and not quiet and not as_json else PlainView
    return kind(raw=raw, quiet=quiet, console_to_stderr=as_json)
