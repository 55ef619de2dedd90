"""The node, its caches, its health; and what of it is reached over TCP."""

import aiohttp
import pytest

from executord.core.reasons import Fault, FaultError, Reason
from executord.core.states import State
from tests.fakes.api import Api, serving


async def test_the_node_tells_its_tiers_promises_and_engine(api: Api) -> None:
    node = (await api.get("/v1/node")).json
    assert node["name"] == "node-1"
    assert node["tiers"][0]["promised_runs"] == 1
    assert node["engine"]["storage_driver"] == "overlay2"
    assert node["accepting"] is True


async def test_stats_are_of_live_runs(api: Api) -> None:
    api.parts.manager.add("r-1")
    api.parts.manager.add("r-2")
    await api.parts.manager.move("r-2", State.STOPPED)
    stats = (await api.get("/v1/stats")).json
    assert [run["id"] for run in stats["runs"]] == ["r-1"]
    assert stats["runs"][0]["sample"]["memory_bytes"] == 1 << 20
    assert stats["host"]["cpus"] == 2


async def test_the_caches_are_summed_and_listed_last_used_first(api: Api) -> None:
    cache = (await api.get("/v1/cache")).json
    assert cache["files"]["hits_bytes"] == 30
    assert cache["images"] == {"images": 1, "own_bytes": 50}
    trees = (await api.get("/v1/cache/trees")).json
    assert [entry["kind"] for entry in trees["entries"]] == ["layer", "snapshot"]
    assert trees["total"] == 2
    assert len((await api.get("/v1/cache/trees?limit=1")).json["entries"]) == 1
    images = (await api.get("/v1/cache/images")).json
    assert images["entries"][0]["used_by"] == ["r-1"]


async def test_a_dry_prune_tells_and_keeps_a_real_one_takes(api: Api) -> None:
    dry = await api.post("/v1/cache/prune", {"dry_run": True})
    assert dry.json["victims_total"] == len(api.parts.files.held) == 3
    real = await api.post("/v1/cache/prune")
    assert real.json["dry_run"] is False
    assert real.json["freed_bytes"] == 30
    assert api.parts.files.held == []


async def test_a_part_that_cannot_do_it_now_is_503_with_its_reason(api: Api) -> None:
    api.parts.files.error = FaultError(Fault(Reason.DISK_FULL, "No space under the cache."))
    answer = await api.get("/v1/cache")
    assert (answer.status, answer.code) == (503, "unavailable")
    assert answer.json["reason"] == "disk_full"
    assert answer.json["detail"] == "No space under the cache."


async def test_health_readiness_and_metrics(api: Api) -> None:
    assert (await api.get("/healthz")).json == {"status": "ok"}
    assert (await api.get("/readyz")).json == {"ready": True}
    metrics = await api.get("/metrics")
    assert metrics.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert metrics.body.endswith(b"up 1\n")
    api.parts.manager.why_not_ready = "The engine does not answer."
    answer = await api.get("/readyz")
    assert (answer.status, answer.code) == (503, "not_ready")
    assert answer.json["detail"] == "The engine does not answer."
    assert (await api.get("/healthz")).status == 200


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "[::1]:0"])
async def test_tcp_serves_what_monitors_ask_and_nothing_else(listen: str) -> None:
    try:
        async with serving(listen=listen) as api, aiohttp.ClientSession() as session:
            host = listen.rpartition(":")[0]
            base = f"http://{host}:{api.server.tcp_port}"
            for path in ("/metrics", "/healthz", "/readyz"):
                async with session.get(base + path) as response:
                    assert response.status == 200
            for path in ("/v1/node", "/v1/runs", "/v1/runs/r-1", "/openapi.json", "/v1/events"):
                async with session.get(base + path) as response:
                    assert response.status == 404
            async with session.post(base + "/v1/runs", json={"command": ["true"]}) as response:
                assert response.status == 404
            assert api.parts.manager.kept == {}
    except OSError as error:  # pragma: no cover - a machine without IPv6
        if listen.startswith("["):
            pytest.skip(f"no IPv6 here: {error}")
        raise
