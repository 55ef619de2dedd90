"""Uses of a file cache as they might be recorded on nodes of several kinds; nothing is real.

Each generator is a function of a seed. Sizes are drawn from a log-normal, as those of projects
are; fetching is taken to be 200 MB and 5,000 files a second, linking 100,000 files a second.
"""

import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from executord.core.cache_trace import TracePart, Use

DAY = 86_400.0
_BLOCK = 4096
_SECONDS_PER_BYTE = 1 / 200e6
_SECONDS_PER_FILE = 1 / 5_000
_LINK_SECONDS_PER_FILE = 1 / 100_000
_OWN_BYTES_PER_FILE = 120


@dataclass
class _Project:
    """The newest revision of a project, as a sample of its files."""

    name: str
    parts: dict[int, int]
    stands_for: int
    revision: int = 0

    def use(self, time: float) -> Use:
        files = len(self.parts) * self.stands_for
        size = sum(self.parts.values()) * _BLOCK
        return Use(
            time=time,
            tree=f"{self.name}@{self.revision}",
            files=files,
            bytes=size,
            own_bytes=max(3 * _BLOCK, files * _OWN_BYTES_PER_FILE),
            own_inodes=5 + files // 20,
            own_seconds=0.005 + files * _LINK_SECONDS_PER_FILE,
            seconds_per_file=_SECONDS_PER_FILE * self.stands_for,
            seconds_per_byte=_SECONDS_PER_BYTE,
            parts=tuple(TracePart(part, blocks) for part, blocks in self.parts.items()),
        )

    def edit(self, rng: random.Random, share: float) -> None:
        """The next revision: some files have new contents."""
        for part in rng.sample(list(self.parts), max(1, round(len(self.parts) * share))):
            self.parts[rng.getrandbits(64)] = self.parts.pop(part)
        self.revision += 1


def _project(rng: random.Random, name: str, *, files: float, file_bytes: float) -> _Project:
    """Medians of how many files there are, and of how large they are."""
    count = max(1, round(rng.lognormvariate(math.log(files), 1.2)))
    sampled = min(count, 60)
    stands_for = count // sampled
    mean = rng.lognormvariate(math.log(file_bytes), 1.3)
    parts = {
        rng.getrandbits(64): max(1, int(stands_for * rng.expovariate(1 / mean) / _BLOCK))
        for _ in range(sampled)
    }
    return _Project(name, parts, stands_for)


def zipf(seed: int) -> Iterator[Use]:
    """400 projects, some much more popular than others, each edited now and then."""
    rng = random.Random(seed)
    projects = [_project(rng, f"p{n}", files=800, file_bytes=60_000) for n in range(400)]
    weights = [1 / (n + 1) ** 0.9 for n in range(len(projects))]
    time = 0.0
    for _ in range(5000):
        time += rng.expovariate(1 / 120)
        (project,) = rng.choices(projects, weights)
        if rng.random() < 0.1:
            project.edit(rng, 0.03)
        yield project.use(time)


def edits(seed: int) -> Iterator[Use]:
    """People at work: edit, run, edit, run; for some hours on one project, then another."""
    rng = random.Random(seed)
    projects = [_project(rng, f"p{n}", files=3000, file_bytes=30_000) for n in range(80)]
    uses = []
    for person in range(12):
        time = rng.uniform(0, DAY / 2)
        mine = rng.sample(projects, 8)
        while time < 20 * DAY:
            project = mine[min(int(rng.expovariate(0.5)), 7)]
            for _ in range(rng.randint(3, 20)):
                uses.append((time, person, project))
                time += rng.expovariate(1 / 500)
            time += rng.expovariate(1 / (5 * 3600))
    for time, _, project in sorted(uses, key=lambda use: use[:2]):
        if rng.random() < 0.6:
            project.edit(rng, 0.01)
        yield project.use(time)


def scans(seed: int) -> Iterator[Use]:
    """A working set of small projects, and every day a row of large ones that come once."""
    rng = random.Random(seed)
    projects = [_project(rng, f"p{n}", files=1500, file_bytes=40_000) for n in range(120)]
    weights = [1 / (n + 1) ** 0.7 for n in range(len(projects))]
    numbers = itertools.count()
    uses = [(rng.uniform(0, 15 * DAY), -1) for _ in range(3500)]
    uses += [
        (day * DAY + 3600 * rng.uniform(2, 4), next(numbers))
        for day in range(15)
        for _ in range(25)
    ]
    for time, one_off in sorted(uses):
        if one_off < 0:
            (project,) = rng.choices(projects, weights)
            if rng.random() < 0.05:
                project.edit(rng, 0.02)
            yield project.use(time)
        else:
            yield _project(rng, f"scan{one_off}", files=400, file_bytes=2_000_000).use(time)


def nightly(seed: int) -> Iterator[Use]:
    """The same batch of projects every night in the same order, and people by day."""
    rng = random.Random(seed)
    batch = [_project(rng, f"n{n}", files=2000, file_bytes=50_000) for n in range(70)]
    daily = [_project(rng, f"d{n}", files=1000, file_bytes=50_000) for n in range(150)]
    weights = [1 / (n + 1) for n in range(len(daily))]
    for day in range(20):
        for number, project in enumerate(batch):
            if rng.random() < 0.05:
                project.edit(rng, 0.02)
            yield project.use(day * DAY + 3600 + number * 120)
        for time in sorted(rng.uniform(8, 20) for _ in range(150)):
            (project,) = rng.choices(daily, weights)
            if rng.random() < 0.2:
                project.edit(rng, 0.02)
            yield project.use(day * DAY + time * 3600)


def mixed_costs(seed: int) -> Iterator[Use]:
    """Few huge files here, very many tiny ones there: equal bytes cost very unequal times."""
    rng = random.Random(seed)
    projects = [_project(rng, f"few{n}", files=20, file_bytes=20_000_000) for n in range(60)]
    projects += [_project(rng, f"many{n}", files=20_000, file_bytes=6_000) for n in range(60)]
    rng.shuffle(projects)
    weights = [1 / (n + 1) ** 0.6 for n in range(len(projects))]
    time = 0.0
    for _ in range(3000):
        time += rng.expovariate(1 / 300)
        (project,) = rng.choices(projects, weights)
        if rng.random() < 0.05:
            project.edit(rng, 0.05)
        yield project.use(time)


GENERATORS: Mapping[str, Callable[[int], Iterator[Use]]] = {
    "zipf": zipf,
    "edits": edits,
    "scans": scans,
    "nightly": nightly,
    "mixed costs": mixed_costs,
}
