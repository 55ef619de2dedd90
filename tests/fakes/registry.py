"""An image registry on loopback, of which the engine can pull: small, and rude when asked to be.

It speaks the read side of the OCI distribution protocol, v2.
"""

import asyncio
import gzip
import hashlib
import io
import json
import os
import tarfile
from collections import Counter
from dataclasses import dataclass, field

from aiohttp import web

_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
_CONFIG = "application/vnd.docker.container.image.v1+json"
_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"


def _digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


@dataclass(slots=True)
class LoopbackRegistry:
    """`denied` names are refused with 403; layers wait for `gate`; `status` answers everything."""

    manifests: dict[str, bytes] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    denied: set[str] = field(default_factory=set)
    status: int = 200
    gate: asyncio.Event | None = None
    requests: Counter[str] = field(default_factory=Counter)
    image_ids: set[str] = field(default_factory=set)
    port: int = 0
    _runner: web.AppRunner | None = None

    async def open(self) -> None:
        app = web.Application()
        app.router.add_get("/v2/", self._root)
        app.router.add_get("/v2/{name:.+}/manifests/{tag}", self._manifest)
        app.router.add_get("/v2/{name:.+}/blobs/{digest}", self._blob)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    def reference(self, name: str, tag: str = "1") -> str:
        return f"127.0.0.1:{self.port}/{name}:{tag}"

    def publish(self, name: str, tag: str = "1", *, layer_bytes: tuple[int, ...] = (2000,)) -> str:
        """Offer an image whose layers hold one random file each; gives its reference."""
        layers = [_layer(number, size) for number, size in enumerate(layer_bytes)]
        config = json.dumps(
            {
                "architecture": "amd64",
                "os": "linux",
                "created": "2024-01-01T00:00:00Z",
                "config": {"Cmd": ["/hello"]},
                "rootfs": {"type": "layers", "diff_ids": [diff_id for diff_id, _ in layers]},
                "history": [{"created_by": "test"} for _ in layers],
            }
        ).encode()
        self.image_ids.add(_digest(config))
        manifest = {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": self._describe(_CONFIG, config),
            "layers": [self._describe(_LAYER, packed) for _, packed in layers],
        }
        body = json.dumps(manifest).encode()
        self.manifests[f"{name}:{tag}"] = self.manifests[f"{name}:{_digest(body)}"] = body
        return self.reference(name, tag)

    def _describe(self, media_type: str, data: bytes) -> dict[str, object]:
        self.blobs[_digest(data)] = data
        return {"mediaType": media_type, "size": len(data), "digest": _digest(data)}

    async def _root(self, _: web.Request) -> web.Response:
        return web.Response(status=self.status, text="{}")

    async def _manifest(self, request: web.Request) -> web.Response:
        name, tag = request.match_info["name"], request.match_info["tag"]
        self.requests[name] += 1
        if self.status != 200:
            code = "TOOMANYREQUESTS" if self.status == 429 else "UNKNOWN"
            return _refusal(self.status, code, "the registry has trouble of its own")
        if name in self.denied:
            return _refusal(403, "DENIED", "requested access to the resource is denied")
        body = self.manifests.get(f"{name}:{tag}")
        if body is None:
            return _refusal(404, "MANIFEST_UNKNOWN", "manifest unknown")
        headers = {"Content-Type": _MANIFEST, "Docker-Content-Digest": _digest(body)}
        return web.Response(body=body, headers=headers)

    async def _blob(self, request: web.Request) -> web.StreamResponse:
        body = self.blobs.get(request.match_info["digest"], b"")
        response = web.StreamResponse(headers={"Content-Length": str(len(body))})
        await response.prepare(request)
        half = len(body) // 2
        await response.write(body[:half])
        if self.gate is not None and len(body) > 10_000:
            await self.gate.wait()
        await response.write(body[half:])
        return response


def _layer(number: int, size: int) -> tuple[str, bytes]:
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w") as tar:
        entry = tarfile.TarInfo(f"file-{number}")
        entry.size = size
        tar.addfile(entry, io.BytesIO(os.urandom(size)))
    return _digest(body.getvalue()), gzip.compress(body.getvalue(), 1)


def _refusal(status: int, code: str, message: str) -> web.Response:
    return web.json_response({"errors": [{"code": code, "message": message}]}, status=status)
