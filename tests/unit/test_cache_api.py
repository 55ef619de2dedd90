"""What the socket and executorctl tell of the file cache."""

import asyncio
import json
import subprocess
from pathlib import Path

from executord.core.cache_trace import decode, encode
from executord.usage.metrics import Metrics
from tests.bench.cache_traces import zipf
from tests.fakes.api import Api, serving
from tests.fakes.executorctl import ctl
from tests.fakes.services import A_REPORT, A_USE


async def on(api: Api, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    return await asyncio.to_thread(ctl, *arguments, socket=api.socket)


async def test_the_report_is_told_with_ratios_and_times() -> None:
    async with serving() as api:
        report = (await api.get("/v1/cache")).json["files"]["report"]
    assert report["in_all"]["file_hit_ratio"] == 0.75
    assert report["in_all"]["run_hit_ratio"] == 0.5
    assert report["counted"]["at"] is None
    assert report["kinds"]["kept_workspaces"]["bytes"] == 4096
    assert report["limits"]["disk_free_inodes"] == 1000
    assert report["evictions"] == [{"trigger": "prune", "entries": 2, "bytes": 4096, "inodes": 3}]
    assert report["recent_evictions"][0]["time"].endswith("Z")
    assert report["kept"][0]["run"] == "r-9"


async def test_the_trace_is_what_the_simulator_reads(tmp_path: Path) -> None:
    async with serving() as api:
        told = (await api.get("/v1/cache/trace")).json
        assert decode(json.dumps(told["uses"][0])) == A_USE
        done = await on(api, "--json", "cache", "simulate", "--size", "1MiB")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert [each["policy"] for each in answer["outcomes"]] == ["lru", "worth", "clairvoyant bound"]
    assert answer["uses"] == 1


async def test_a_file_is_replayed_without_a_daemon(tmp_path: Path) -> None:
    trace = tmp_path / "uses.jsonl"
    uses = [use for _, use in zip(range(300), zipf(1), strict=False)]
    trace.write_text("".join(f"{encode(use)}\n" for use in uses))
    done = await asyncio.to_thread(
        ctl, "cache", "simulate", "--trace", str(trace), "--size", "5GiB", socket=tmp_path / "none"
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout.decode()
    assert "least recently used" in said
    assert "executord" in said
    assert "best possible" in said


async def test_a_broken_trace_is_told_with_its_line(tmp_path: Path) -> None:
    trace = tmp_path / "uses.jsonl"
    trace.write_text(f"{encode(A_USE)}\n" + "nonsense\n")
    done = await asyncio.to_thread(
        ctl, "cache", "simulate", "--trace", str(trace), socket=tmp_path / "none"
    )
    assert done.returncode == 1
    assert b"uses.jsonl:2" in done.stderr


async def test_a_size_that_is_none_is_wrong_usage(tmp_path: Path) -> None:
    done = await asyncio.to_thread(
        ctl, "cache", "simulate", "--size", "much", socket=tmp_path / "none"
    )
    assert done.returncode == 2


async def test_people_see_use_evictions_and_what_is_kept() -> None:
    async with serving() as api:
        said = (await on(api, "cache")).stdout.decode()
        trees = (await on(api, "cache", "trees")).stdout.decode()
        names = (await on(api, "--quiet", "cache", "trees")).stdout.decode().split()
    assert "10 B of 1.0 GiB" in said
    assert "50.0% of runs, 75.0% of files" in said
    assert "asked to prune" in said
    assert "used once, last 2 days ago" in said
    assert "r-9" in said
    assert "kept workspaces" in said
    assert "layer" in trees
    assert names == ["sha256:" + "c" * 64, "sha256:" + "a" * 64]


def test_the_same_is_told_to_prometheus() -> None:
    metrics = Metrics(version="1")
    metrics.set_cache(A_REPORT)
    text = metrics.render().decode()
    assert 'executord_cache_bytes{kind="kept_workspaces"} 4096.0' in text
    assert 'executord_cache_requested_files_total{result="hit"} 3.0' in text
    assert 'executord_cache_evicted_bytes_total{trigger="prune"} 4096.0' in text
    assert "executord_cache_disk_free_inodes 1000.0" in text
