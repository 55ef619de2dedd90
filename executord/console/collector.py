"""One thread that keeps the output of every running container.

It looks at each log in turn, takes a bounded part of what is new, and rests for a moment when
nothing is. While no container runs it sleeps. What goes wrong with one log holds up no other.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Condition, Thread
from typing import Protocol

import structlog

log = structlog.get_logger(__name__)

_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 2.0


class Collected(Protocol):
    """What the thread works on; see `tail.Tail`."""

    def step(self) -> bool: ...
    def finish(self) -> None: ...
    def close(self) -> None: ...


@dataclass(slots=True)
class _Job:
    """`give_up_at` is the monotonic time at which draining ends, whatever is missing."""

    run_id: str
    open_tail: Callable[[], Collected]
    on_change: Callable[[], None]
    tail: Collected | None = None
    drained: Future[bool] | None = None
    give_up_at: float = 0.0
    rest_until: float = 0.0
    pause_seconds: float = _FIRST_PAUSE_SECONDS


@dataclass(slots=True)
class Collector:
    poll_seconds: float = 0.03
    monotonic: Callable[[], float] = time.monotonic
    _jobs: dict[str, _Job] = field(default_factory=dict)
    _changed: Condition = field(default_factory=Condition)
    _thread: Thread | None = None
    _stopping: bool = False

    def start(self) -> None:
        assert self._thread is None
        self._stopping = False
        self._thread = Thread(target=self._work, name="console-collector", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Blocks until the thread has ended. What is not kept yet is read again next time."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        for job in self._jobs.values():
            if job.tail is not None:
                job.tail.close()
            if job.drained is not None:
                job.drained.cancel()
        self._jobs.clear()

    def add(
        self, run_id: str, open_tail: Callable[[], Collected], on_change: Callable[[], None]
    ) -> None:
        """Begin with a run; nothing happens where it has been begun. Both are called in the
        thread: `on_change` when something new was kept.
        """
        with self._changed:
            if run_id not in self._jobs:
                self._jobs[run_id] = _Job(run_id, open_tail, on_change)
                self._changed.notify_all()

    def drain(self, run_id: str, *, within_seconds: float) -> Future[bool] | None:
        """Done when all of the run's output is kept, with False when it was given up; None for a
        run that is not being collected.
        """
        with self._changed:
            job = self._jobs.get(run_id)
            if job is None:
                return None
            if job.drained is None:
                job.drained = Future()
                job.give_up_at = self.monotonic() + within_seconds
                self._changed.notify_all()
            return job.drained

    # -- in the thread -----------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._jobs and not self._stopping:
                    self._changed.wait()
                if self._stopping:
                    return
                jobs = list(self._jobs.values())
            busy = False
            for job in jobs:
                busy = self._serve(job) or busy
            if not busy:
                self._rest()

    def _rest(self) -> None:
        with self._changed:
            waits = any(self._can_drain(job) for job in self._jobs.values())
            if not self._stopping and not waits:
                self._changed.wait(self.poll_seconds)

    def _can_drain(self, job: _Job) -> bool:
        return job.drained is not None and job.rest_until <= self.monotonic()

    def _serve(self, job: _Job) -> bool:
        """Whether something was done."""
        now = self.monotonic()
        draining = job.drained is not None
        if draining and now >= job.give_up_at:
            log.error("console.drain_given_up", run_id=job.run_id)
            self._leave(job, complete=False)
            return True
        if now < job.rest_until:
            return False
        try:
            if job.tail is None:
                job.tail = job.open_tail()
            if job.tail.step():
                job.on_change()
                return True
            if draining:
                job.tail.finish()
                job.on_change()
                self._leave(job, complete=True)
                return True
            job.pause_seconds = _FIRST_PAUSE_SECONDS
        except OSError as error:
            self._put_off(job, error)
        except Exception:  # a mistake costs one console, not all of them
            log.exception("console.collector_failed", run_id=job.run_id)
            self._put_off(job, None)
        return False

    def _put_off(self, job: _Job, error: OSError | None) -> None:
        if error is not None and job.pause_seconds == _FIRST_PAUSE_SECONDS:
            log.warning("console.collection_stalled", run_id=job.run_id, error=str(error))
        job.rest_until = self.monotonic() + job.pause_seconds
        job.pause_seconds = min(2 * job.pause_seconds, _LONGEST_PAUSE_SECONDS)

    def _leave(self, job: _Job, *, complete: bool) -> None:
        with self._changed:
            self._jobs.pop(job.run_id, None)
        if job.tail is not None:
            job.tail.close()
        if job.drained is not None:
            job.drained.set_result(complete)
