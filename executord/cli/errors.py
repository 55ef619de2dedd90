"""What can go wrong on the client's side, each with its exit code and with what to do about it."""

from typing import Any

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3
EXIT_INTERRUPTED = 130
EXIT_PIPE_CLOSED = 141


class CliError(Exception):
    """A command could not do what it was asked: `message` says what and why, `advice` what next."""

    exit_code = EXIT_FAILED
    code = "failed"

    def __init__(self, message: str, *, advice: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.advice = advice

    def as_json(self) -> dict[str, Any]:
        return {"code": self.code, "detail": self.message, "advice": self.advice}


class UsageProblemError(CliError):
    """Options that click accepts and that make no sense together, or name what is not there."""

    exit_code = EXIT_USAGE
    code = "usage"


class UnreachableError(CliError):
    """The daemon does not answer on its socket."""

    exit_code = EXIT_UNREACHABLE
    code = "unreachable"


class ConnectionLostError(UnreachableError):
    """The connection broke after the request was sent: nobody knows whether it was carried out."""

    code = "connection_lost"


class BadAnswerError(CliError):
    """Whatever listens on the socket does not speak executord's protocol."""

    code = "bad_answer"


class ProblemError(CliError):
    """The daemon refused: an RFC 9457 problem document."""

    def __init__(self, status: int, problem: dict[str, Any]) -> None:
        self.status = status
        self.problem = problem
        self.code = str(problem.get("code") or f"http_{status}")
        title = str(problem.get("title") or f"the daemon answered {status}")
        field = problem.get("pointer") or problem.get("parameter")
        detail = str(problem.get("detail") or title)
        super().__init__(
            f"{detail} ({field})" if field and str(field) not in detail else detail,
            advice=_advice(self.code, problem),
        )

    def as_json(self) -> dict[str, Any]:
        return {"status": self.status, **self.problem, "code": self.code, "advice": self.advice}


_ADVICE = {
    "unknown_run": "`executorctl ps -a` lists the runs of this node.",
    "unknown_tier": "`executorctl node` lists the tiers of this node.",
    "too_large_for_node": "`executorctl node` lists what this node has.",
    "unknown_revision": "Push the project again: `executorctl push DIR --project P`.",
    "id_conflict": "Choose another id, or leave it out.",
    "run_over": "`executorctl show RUN` tells how it ended.",
    "image_required": "Name one with --image.",
    "forbidden": "Ask whoever runs this node for a role that may do it.",
    "disk_full": "Free space on the node, for instance with `executorctl cache prune`.",
    "draining": "`executorctl resume` lets the node take new runs again.",
}


def _advice(code: str, problem: dict[str, Any]) -> str:
    retry = problem.get("retry_after_seconds")
    later = f"Try again in {retry:g} s." if isinstance(retry, int | float) else ""
    known = str(problem.get("advice") or _ADVICE.get(code, ""))
    return " ".join(part for part in (known, later) if part)
