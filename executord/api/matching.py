"""Which route a method and a path mean."""

import re
from collections.abc import Iterable
from urllib.parse import unquote

from executord.api.problems import METHOD_NOT_ALLOWED, NOT_FOUND, ProblemError
from executord.api.routes import Route
from executord.api.wire import RUN_ID_PATTERN
from executord.core.refusals import Refusal

_RUN_ID = re.compile(RUN_ID_PATTERN)
_PREFIX = "/v1/runs/"
_LONGEST_SHOWN = 80


class Matcher:
    """Paths are taken as they were sent: what is encoded never becomes a `/` or a `..`."""

    def __init__(self, table: Iterable[Route]) -> None:
        self.routes = tuple(table)
        self._methods: dict[str, dict[str, Route]] = {}
        for route in self.routes:
            self._methods.setdefault(route.path, {})[route.method] = route

    def match(self, method: str, raw_path: str) -> tuple[Route, str]:
        """The route and the run's id; ProblemError not_found, unknown_run, method_not_allowed."""
        path, run_id = raw_path, ""
        if raw_path.startswith(_PREFIX):
            given, slash, rest = raw_path.removeprefix(_PREFIX).partition("/")
            path = f"{_PREFIX}{{id}}{slash}{rest}"
            run_id = unquote(given)
        methods = self._methods.get(path)
        if methods is None:
            raise ProblemError(NOT_FOUND, "`GET /openapi.json` lists every path there is.")
        if run_id or path != raw_path:
            _check_run_id(run_id)
        route = methods.get(method)
        if route is None:
            allowed = ", ".join(sorted(methods))
            raise ProblemError(
                METHOD_NOT_ALLOWED,
                f"This path knows {allowed} only.",
                headers={"Allow": allowed},
            )
        return route, run_id


def _check_run_id(run_id: str) -> None:
    if _RUN_ID.match(run_id):
        return
    shown = run_id if len(run_id) <= _LONGEST_SHOWN else f"{run_id[:_LONGEST_SHOWN]}…"
    raise ProblemError(
        Refusal.UNKNOWN_RUN.value, f"There is no run {shown!r}: no run can have such an id."
    )
