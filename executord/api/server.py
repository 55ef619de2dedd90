"""The API's server: the Unix socket for everything, TCP for what monitors ask."""

import asyncio
import socket
from pathlib import Path

import structlog
from aiohttp import web

from executord.api import sockets
from executord.api.access import AccessRules, look_up
from executord.api.connection import Connection, Gate, Identify, as_nobody, by_peer
from executord.api.dispatch import Dispatcher
from executord.api.limits import Limits
from executord.api.routes import TABLE
from executord.api.services import Services
from executord.api.wire import MAX_BODY_BYTES

log = structlog.get_logger(__name__)

_SHUTDOWN_SECONDS = 0.5
_LINGERING_SECONDS = 2.0


class ApiServer:
    """Serves from `start` to `stop`.

    With `socket_fd` a socket is served that the service manager listens on; mode, group and path
    are its matter then. `listen` is "" or "host:port", for metrics and health alone. Not given
    `access` means: root and the daemon's own user.
    """

    def __init__(
        self,
        *,
        services: Services,
        socket_path: Path,
        socket_mode: int = 0o660,
        socket_group: str = "",
        socket_fd: int | None = None,
        listen: str = "",
        access: AccessRules | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._services = services
        self._socket_path = socket_path
        self._socket_mode = socket_mode
        self._socket_group = socket_group
        self._socket_fd = socket_fd
        self._listen = listen
        self._access = access or AccessRules()
        self._limits = limits or Limits()
        self._own_socket: sockets.OwnSocket | None = None
        self._endpoints: list[_Endpoint] = []
        self.tcp_port = 0

    async def start(self) -> None:
        """SocketError where it cannot listen, ValueError for access rules that mean nothing."""
        roles = await asyncio.to_thread(look_up, self._access)
        try:
            await self._serve(await self._unix_socket(), by_peer(roles), on_tcp=False)
            if self._listen:
                listener = await asyncio.to_thread(sockets.open_tcp, self._listen)
                self.tcp_port = listener.getsockname()[1]
                await self._serve(listener, as_nobody, on_tcp=True)
        except BaseException:
            await self.stop()
            raise
        log.info("api.listening", socket=str(self._socket_path), listen=self._listen)

    async def stop(self) -> None:
        """Takes no more, finishes what was begun by a POST, breaks streams off."""
        for endpoint in self._endpoints:
            await endpoint.stop()
        self._endpoints.clear()
        if self._own_socket is not None:
            await asyncio.to_thread(sockets.remove, self._own_socket)
            self._own_socket = None

    async def _unix_socket(self) -> socket.socket:
        if self._socket_fd is not None:
            return sockets.adopt(self._socket_fd)
        self._own_socket = await asyncio.to_thread(
            sockets.open_unix, self._socket_path, mode=self._socket_mode, group=self._socket_group
        )
        return self._own_socket.socket

    async def _serve(self, listener: socket.socket, identify: Identify, *, on_tcp: bool) -> None:
        table = [route for route in TABLE if route.on_tcp or not on_tcp]
        dispatcher = Dispatcher(services=self._services, table=table, limits=self._limits)
        endpoint = _Endpoint(dispatcher, identify, self._limits)
        self._endpoints.append(endpoint)
        await endpoint.start(listener)


class _Endpoint:
    """One listening socket with its connections."""

    def __init__(self, dispatcher: Dispatcher, identify: Identify, limits: Limits) -> None:
        self._dispatcher = dispatcher
        self._identify = identify
        self._limits = limits
        self._gate = Gate(limits.connections_per_uid)
        self._runner: web.AppRunner | None = None
        self._listening: asyncio.Server | None = None

    async def start(self, listener: socket.socket) -> None:
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.router.add_route(
            "*", r"/{path:[\s\S]*}", self._dispatcher.handle, expect_handler=self._continue_later
        )
        self._runner = web.AppRunner(
            app,
            access_log=None,
            handle_signals=False,
            handler_cancellation=True,
            shutdown_timeout=_SHUTDOWN_SECONDS,
        )
        await self._runner.setup()
        loop = asyncio.get_running_loop()
        if listener.family == socket.AF_UNIX:
            self._listening = await loop.create_unix_server(self._connection, sock=listener)
        else:
            self._listening = await loop.create_server(self._connection, sock=listener)

    async def stop(self) -> None:
        if self._listening is not None:
            self._listening.close()
        await self._dispatcher.stop_streams()
        await self._dispatcher.finish()
        if self._runner is not None:
            await self._runner.cleanup()

    def _connection(self) -> Connection:
        assert self._runner is not None
        assert self._runner.server is not None
        return Connection(
            self._runner.server,
            identify=self._identify,
            gate=self._gate,
            limits=self._limits,
            loop=asyncio.get_running_loop(),
            access_log=None,
            auto_decompress=False,
            lingering_time=_LINGERING_SECONDS,
        )

    async def _continue_later(self, _request: web.Request) -> None:
        """The dispatcher answers an expectation."""
