"""`.dominoignore`: gitignore patterns for what is neither pushed nor synced back.

Patterns come from outside and become regular expressions, which backtrack with Python's global
lock held: a pattern of five stars can stop the whole daemon for minutes on one long name. So
patterns with more wildcards than people write are left out, and named.
"""

import re
from dataclasses import dataclass, field

from pathspec import GitIgnoreSpec
from pathspec.patterns.gitignore import GitIgnorePatternError

FILE_NAME = ".dominoignore"
MAX_BYTES = 256 << 10
_MAX_PATTERNS = 2000
_MAX_PATTERN = 512
_MAX_PATH = 1024
_MAX_STARS_IN_NAME = 2
_MAX_WILDCARDS = 4
_MAX_DEEP_STARS = 2
_DEEP = re.compile(r"\*\*+")
_STARS = re.compile(r"\*+")


@dataclass(frozen=True, slots=True)
class Ignore:
    """`problems` names the lines that were left out, for a person."""

    spec: GitIgnoreSpec | None = None
    problems: tuple[str, ...] = field(default=())

    def matches(self, path: str, *, is_directory: bool) -> bool:
        """`path` is relative to the project's root. A directory that matches takes all below."""
        if self.spec is None or len(path) > _MAX_PATH:
            return False
        return bool(self.spec.match_file(f"{path}/" if is_directory else path))


def parse(data: bytes) -> Ignore:
    """Never fails: what cannot be used is named in `problems`."""
    if len(data) > MAX_BYTES:
        return Ignore(None, (f"larger than {MAX_BYTES} bytes, not used",))
    usable: list[str] = []
    problems: list[str] = []
    for number, line in enumerate(data.decode(errors="surrogateescape").splitlines(), 1):
        pattern = line.rstrip("\r\n")
        if not pattern.strip() or pattern.startswith("#"):
            continue
        problem = _problem(pattern)
        if problem or len(usable) >= _MAX_PATTERNS:
            text = problem or f"more than {_MAX_PATTERNS} patterns"
            problems.append(f"line {number}: {text}, not used")
        else:
            usable.append(pattern)
    return Ignore(GitIgnoreSpec.from_lines(usable) if usable else None, tuple(problems[:20]))


def _problem(pattern: str) -> str:
    if len(pattern) > _MAX_PATTERN:
        return f"longer than {_MAX_PATTERN} characters"
    wildcards = len(_STARS.findall(pattern))
    in_one_name = max(_costly_stars(name) for name in pattern.split("/"))
    too_many = wildcards > _MAX_WILDCARDS or in_one_name > _MAX_STARS_IN_NAME
    if too_many or len(_DEEP.findall(pattern)) > _MAX_DEEP_STARS:
        return "too many wildcards"
    try:
        GitIgnoreSpec.from_lines([pattern])
    except (GitIgnorePatternError, re.error, ValueError) as error:
        return str(error)
    return ""


def _costly_stars(name: str) -> int:
    """A star at the end of a name never has to be tried again."""
    return len(_STARS.findall(name)) - name.endswith("*")


NOTHING = Ignore()
