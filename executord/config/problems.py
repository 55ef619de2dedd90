"""What is wrong with a configuration: all of it at once, each with its key and line."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


class BadValueError(Exception):
    """One value that will not do; the text says what is wrong and what would be right."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """`key` is dotted ("files.max_size"), "" for the file as a whole; `line` counts from 1."""

    key: str
    sentence: str
    line: int | None = None


class ConfigError(Exception):
    """A configuration that cannot be used. Its text has one line for each problem."""

    def __init__(self, path: Path, problems: Sequence[Problem]) -> None:
        self.path = path
        self.problems = tuple(sorted(problems, key=lambda p: (p.line or 0, p.key)))
        super().__init__("\n".join(self._line_of(problem) for problem in self.problems))

    def _line_of(self, problem: Problem) -> str:
        place = f"{self.path}:{problem.line}" if problem.line else f"{self.path}"
        key = f"{problem.key}: " if problem.key else ""
        return f"{place}: {key}{problem.sentence}"
