"""Following one run: its console as it comes, its states as they change, Ctrl-C as a stop.

Two threads ask the daemon, one for the console, one for the run; the main thread alone writes.
The first Ctrl-C asks the run to stop, the second leaves it to itself.
"""

import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TypeAlias

from executord.cli.client import Client, JsonObject, quoted
from executord.cli.describe import entered_state
from executord.cli.errors import CliError, ProblemError, UnreachableError
from executord.cli.resume import Patience, Record, console, is_terminal
from executord.cli.views import View

BUSY_INTERVAL_SECONDS = 0.1
RUNNING_INTERVAL_SECONDS = 0.5
CONSOLE_END_SECONDS = 15.0
"""How long the console may be silent after the run's end before it is not waited for."""
_SLICE_SECONDS = 0.05
_RECORDS_AHEAD = 64


class _DetachedError(BaseException):
    """Raised by the second Ctrl-C, wherever the main thread is."""


@dataclass(frozen=True, slots=True)
class _ConsoleEnded:
    error: CliError | None = None


@dataclass(frozen=True, slots=True)
class _Snapshot:
    run: JsonObject


@dataclass(frozen=True, slots=True)
class _Note:
    text: str


@dataclass(frozen=True, slots=True)
class _Failed:
    error: Exception


_News: TypeAlias = Record | _ConsoleEnded | _Snapshot | _Note | _Failed


class Follower:
    """Follows `run_id` from its console's first byte, or from byte `since`."""

    def __init__(self, client: Client, run_id: str, view: View, *, since: int = 0) -> None:
        self._client = client
        self._run_id = run_id
        self._view = view
        self._since = since
        self._news: queue.SimpleQueue[_News] = queue.SimpleQueue()
        self._room = threading.Semaphore(_RECORDS_AHEAD)
        self._interrupts = 0
        self._look_now = False
        self._shown = 0
        self._running_shown = False
        self._held: list[Record] = []

    def follow(self) -> JsonObject | None:
        """The run as it ended; None when the person detached. Raises CliError."""
        with self._interruptible():
            self._start(self._read_console)
            self._start(self._watch)
            try:
                return self._show_until_end()
            except _DetachedError:
                return None

    # -- the main thread ---------------------------------------------------------------------------

    def _show_until_end(self) -> JsonObject:
        ended: JsonObject | None = None
        console_ended = False
        last_heard = time.monotonic()
        while ended is None or not console_ended:
            try:
                news = self._news.get(timeout=1.0)
            except queue.Empty:
                self._show_held()
                silent = time.monotonic() - last_heard
                if ended is not None and silent > CONSOLE_END_SECONDS:
                    self._view.note("The console's end was not announced; it may lack its tail.")
                    return self._shown_whole(ended)
                continue
            last_heard = time.monotonic()
            match news:
                case Record():
                    self._show_record(news)
                case _ConsoleEnded():
                    console_ended = True
                    self._look_now = True
                    if news.error is not None:
                        self._view.note(f"The console cannot be shown: {news.error.message}")
                case _Snapshot():
                    ended = self._show_run(news.run)
                    self._show_held()
                case _Note():
                    self._view.note(news.text)
                case _Failed():
                    raise news.error
        return self._shown_whole(ended)

    def _shown_whole(self, ended: JsonObject) -> JsonObject:
        self._show_held()
        self._show_rows(ended.get("timeline") or ())
        return ended

    def _show_record(self, record: Record) -> None:
        """The first output of the code waits for the word that it runs: the console is faster."""
        at_once = self._running_shown or record.stream in ("build", "gap")
        if at_once and not self._held:
            self._view.console(record)
            self._room.release()
            return
        self._held.append(record)
        self._look_now = True

    def _show_held(self) -> None:
        for record in self._held:
            self._view.console(record)
            self._room.release()
        self._held.clear()

    def _show_run(self, run: JsonObject) -> JsonObject | None:
        """Gives the run back once it has ended; its last row waits for the console's end."""
        over = is_terminal(str(run.get("state", "")))
        rows = run.get("timeline") or ()
        self._show_rows(rows[:-1] if over else rows)
        self._view.progress({} if over else _progress_of(run))
        return run if over else None

    def _show_rows(self, rows: Sequence[JsonObject]) -> None:
        for row in rows:
            if int(row.get("number") or 0) > self._shown:
                self._shown = int(row["number"])
                self._view.transition(row)
                if entered_state(row) == "Running":
                    self._running_shown = True
                    self._show_held()

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        before = signal.signal(signal.SIGINT, self._interrupted)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _interrupted(self, _signal: int, _frame: FrameType | None) -> None:
        self._interrupts += 1
        if self._interrupts > 1:
            raise _DetachedError

    # -- the threads -------------------------------------------------------------------------------

    def _start(self, work: Callable[[], None]) -> None:
        """A daemon thread: after a detach nothing waits for it."""
        threading.Thread(target=work, name=work.__name__, daemon=True).start()

    def _read_console(self) -> None:
        patience = Patience(lambda _: None)  # the watcher tells of a lost connection
        try:
            for record in console(self._client, self._run_id, since=self._since, patience=patience):
                self._room.acquire()
                self._news.put(record)
        except CliError as error:
            self._news.put(_ConsoleEnded(error))
        except Exception as error:  # noqa: BLE001 - raised again where the person waits
            self._news.put(_Failed(error))
        else:
            self._news.put(_ConsoleEnded())

    def _watch(self) -> None:
        try:
            self._watch_until_end()
        except Exception as error:  # noqa: BLE001 - raised again where the person waits
            self._news.put(_Failed(error))

    def _watch_until_end(self) -> None:
        patience = Patience(lambda text: self._news.put(_Note(text)))
        stop_asked = False
        while True:
            try:
                if self._interrupts and not stop_asked:
                    self._ask_to_stop()
                    stop_asked = True
                run = self._client.get(f"/v1/runs/{quoted(self._run_id)}")
            except (UnreachableError, ProblemError) as error:
                patience.lost(error)
                continue
            patience.connected()
            self._news.put(_Snapshot(run))
            if is_terminal(str(run.get("state", ""))):
                return
            self._rest(run, stop_asked=stop_asked)

    def _ask_to_stop(self) -> None:
        try:
            self._client.post(
                f"/v1/runs/{quoted(self._run_id)}/stop", {"reason": "Ctrl-C in executorctl"}
            )
        except ProblemError as error:
            if error.status == 409:  # it has ended meanwhile
                return
            if error.status >= 500:
                raise
            self._news.put(_Note(f"It could not be asked to stop: {error.message}"))
        else:
            self._news.put(
                _Note(
                    f"Asked {self._run_id} to stop; Ctrl-C again detaches and leaves it to itself."
                )
            )

    def _rest(self, run: JsonObject, *, stop_asked: bool) -> None:
        running = run.get("state") == "Running"
        until = time.monotonic() + (RUNNING_INTERVAL_SECONDS if running else BUSY_INTERVAL_SECONDS)
        while time.monotonic() < until:
            if self._look_now or (self._interrupts and not stop_asked):
                self._look_now = False
                return
            time.sleep(_SLICE_SECONDS)


def _progress_of(run: JsonObject) -> dict[str, JsonObject]:
    progress = run.get("progress") or {}
    if run.get("state") == "Running":
        return {}
    return {name: stage for name, stage in progress.items() if isinstance(stage, dict)}
