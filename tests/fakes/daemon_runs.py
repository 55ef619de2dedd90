"""The runs of the fake daemon, driven by scripts: `go` to a state, `write` output, `end`."""

import base64
import os
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.fakes.daemon import FakeDaemon

Json = dict[str, Any]


def rfc3339(seconds: float) -> str:
    text = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds")
    return text.replace("+00:00", "Z")


def cost(stage: str, seconds: float, **amounts: Any) -> Json:
    kinds = ("from_cache", "fetched", "sent")
    empty = {f"{what}_{kind}": 0 for kind in kinds for what in ("files", "bytes")}
    return {"stage": stage, "seconds": seconds, **empty, "way": "", "why": "", **amounts}


def progress(what: str, **amounts: Any) -> Json:
    names = ("files_done", "files_total", "bytes_done", "bytes_total", "step", "steps")
    pace = {"bytes_per_second": None, "seconds_left": None}
    return {"what": what, **dict.fromkeys(names, 0), "detail": "", **pace, **amounts}


@dataclass
class Piece:
    offset: int
    stream: str
    data: bytes
    lost_bytes: int = 0

    def answer(self) -> Json:
        shown: Json = {"offset": self.offset, "stream": self.stream, "time": rfc3339(time.time())}
        try:
            shown["data"] = self.data.decode()
        except UnicodeDecodeError:
            shown["data_base64"] = base64.b64encode(self.data).decode()
        return {**shown, "lost_bytes": self.lost_bytes}


@dataclass
class FakeRun:
    """What a script drives: `go` to a state, `write` output, `end` it."""

    daemon: "FakeDaemon"
    asked: Json
    state: str = "Queued"
    timeline: list[Json] = field(default_factory=list)
    console: list[Piece] = field(default_factory=list)
    sealed: bool = False
    facts: Json = field(default_factory=dict)
    stopped: threading.Event = field(default_factory=threading.Event)
    submissions: int = 1

    @property
    def id(self) -> str:
        return str(self.asked["id"])

    def go(self, state: str, *costs: Json, reason: str | None = None, detail: str = "") -> None:
        with self.daemon.changed:
            self._go(state, list(costs), reason, detail)
            self.daemon.changed.notify_all()

    def _go(self, state: str, costs: list[Json], reason: str | None, detail: str) -> None:
        row = {
            "seq": len(self.daemon.events) + 1,
            "number": len(self.timeline) + 1,
            "time": rfc3339(time.time()),
            "from": self.state if self.timeline else None,
            "to": state,
            "reason": reason,
            "detail": detail,
            "costs": costs,
        }
        self.state = state
        self.timeline.append(row)
        self.daemon.events.append(self._event(row))

    def _event(self, row: Json) -> Json:
        return {
            "specversion": "1.0",
            "id": f"node-1/{self.id}/{row['number']}",
            "source": "/executord/node-1",
            "type": "executord.run.transition.v1",
            "subject": self.id,
            "time": row["time"],
            "datacontenttype": "application/json",
            "sequence": f"{row['seq']:020d}",
            "data": {
                "run_id": self.id,
                "number": row["number"],
                "seq": row["seq"],
                "time": row["time"],
                "from": row["from"],
                "to": row["to"],
                "reason": row["reason"],
                "side": None,
                "sentence": "",
                "detail": row["detail"],
                "advice": "",
                "costs": row["costs"],
            },
        }

    def write(self, data: bytes, stream: str = "stdout", *, lost_bytes: int = 0) -> None:
        with self.daemon.changed:
            last = self.console[-1] if self.console else None
            offset = last.offset + len(last.data) + last.lost_bytes if last else 0
            self.console.append(Piece(offset, stream, data, lost_bytes))
            self.daemon.changed.notify_all()

    def show(self, **stages: Json) -> None:
        self.facts["progress"] = stages

    def end(
        self,
        state: str,
        *,
        exit_code: int | None = None,
        reason: str = "completed",
        side: str = "nobody",
        **facts: Any,
    ) -> None:
        with self.daemon.changed:
            self.facts |= {
                "progress": {},
                "exit_code": exit_code,
                "reason": reason,
                "ended_at": rfc3339(time.time()),
                "evidence": {"exit_code": exit_code, "oom_killed": False},
                "explanation": {
                    "reason": reason,
                    "side": side,
                    "sentence": f"It ended so: {reason}.",
                    "detail": f"Exit code {exit_code}." if exit_code else "",
                    "advice": "Read the console." if side == "user" else "",
                },
                **facts,
            }
            self._go(state, [], reason, "")
            self.sealed = True
            self.daemon.changed.notify_all()

    def answer(self, *, timeline: bool) -> Json:
        environment = {"image": "busybox", "dockerfile": "", "build_args": {}, "pull": "missing"}
        environment |= self.asked.get("environment", {})
        keep = ["failed", "stopped", "succeeded"]
        shown: Json = {
            "id": self.id,
            "project": self.asked.get("project", "local/scratch"),
            "number": self.asked.get("number", 0),
            "started_by": self.asked.get("started_by", ""),
            "owner_uid": os.getuid(),
            "tier": self.asked.get("tier", "small"),
            "state": self.state,
            "state_since": self.timeline[-1]["time"],
            "accepted_at": self.timeline[0]["time"],
            "ended_at": None,
            "attempt": 1,
            "assignment": {
                "id": self.id,
                "project": self.asked.get("project", "local/scratch"),
                "number": self.asked.get("number", 0),
                "started_by": self.asked.get("started_by", ""),
                "tier": self.asked.get("tier", "small"),
                "files": self.asked.get("files"),
                "environment": environment,
                "command": self.asked.get("command", []),
                "env": self.asked.get("env", {}),
                "secret_names": sorted(self.asked.get("secrets", {})),
                "mounts": self.asked.get("mounts", []),
                "limits": {"run_seconds": None, **self.asked.get("limits", {})},
                "results": {"keep_on": keep, **self.asked.get("results", {})},
                "labels": self.asked.get("labels", {}),
            },
            "reason": None,
            "explanation": None,
            "evidence": None,
            "exit_code": None,
            "stop": None,
            "result": None,
            "costs": [row_cost for row in self.timeline for row_cost in row["costs"]],
            "usage": None,
            "progress": {},
            "queue_position": 0 if self.state == "Queued" else None,
            "image": None,
            "labels": self.asked.get("labels", {}),
            "syncs": [],
            "sync_count": 0,
            "keeps_workspace": False,
            **self.facts,
        }
        return {**shown, "timeline": self.timeline} if timeline else shown


def succeeds(run: FakeRun) -> None:
    """The shortest script: prints a line and ends well."""
    run.go("Scheduled")
    run.go("Preparing", cost("queue", 0.001))
    run.go("Running", cost("prepare", 0.012, files_from_cache=3, bytes_from_cache=2048))
    run.write(b"hello\n")
    run.go("Finishing", cost("run", 0.2))
    run.end("Succeeded", exit_code=0)
