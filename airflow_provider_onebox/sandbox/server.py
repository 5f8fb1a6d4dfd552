"""The sandbox as a running server, in a separate thread."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import TYPE_CHECKING, Any

import uvicorn

from .app import App
from .state import State

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime
    from types import TracebackType

EMAIL = "care@example.com"
PASSWORD = "sandbox p&ss=w%rd"  # noqa: S105 - shown in the documentation; special characters catch wrong encoding


def _protocol(name: str, state: State) -> type[asyncio.Protocol]:
    """Return uvicorn's HTTP protocol, which passes its transport to the application.

    ASGI can't abort a connection, and clients must be tested against that.
    """
    base: Any
    try:
        if name == "h11":
            raise ImportError
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol as base  # noqa: N813
    except ImportError:
        from uvicorn.protocols.http.h11_impl import H11Protocol as base  # noqa: N813

    class Protocol(base):  # type: ignore[misc]
        # uvicorn sets it from its configuration, once for each connection.
        timeout_keep_alive = property(lambda _: state.keep_alive, lambda *_: None)

        def connection_made(self, transport: asyncio.Transport) -> None:
            self.app_state = {"transport": transport}
            state.connections += 1
            state.transports.add(transport)
            super().connection_made(transport)

        def connection_lost(self, exc: Exception | None) -> None:
            state.transports.discard(self.transport)
            super().connection_lost(exc)

    return Protocol


class _Server(uvicorn.Server):
    """uvicorn's server, but it stops on an event, without polling, and does not wait for clients."""

    def __init__(self, config: uvicorn.Config, state: State, ready: threading.Event) -> None:
        super().__init__(config)
        self.state, self.up = state, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.loop, self.stopping = asyncio.get_running_loop(), asyncio.Event()
        self.up.set()

    async def main_loop(self) -> None:
        await self.stopping.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002
        # A connection that was just accepted gets its protocol in the next turns of the loop; asyncio loses it if the
        # listener closes before that.
        for server in self.servers:
            for listener in server.sockets:
                self.loop.remove_reader(listener.fileno())
        for _ in range(4):
            await asyncio.sleep(0)
        for server in self.servers:
            server.close()
        for transport in list(self.state.transports):
            transport.abort()
        # The protocols notice in the next turn of the loop; before that, a cancelled request is an error.
        await asyncio.sleep(0)
        tasks = list(self.server_state.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Sandbox:
    """A local Onebox on a free port, for a ``with`` block.

    >>> with Sandbox(records=100, token_life=2) as sandbox:
    ...     requests.post(f"{sandbox.url}/api/authenticate", data=sandbox.credentials)
    ...     sandbox.state.fail("drop_before", path="ticketrz")

    :param records: records that each resource of each site begins with
    :param sites: Ids of the sites
    :param email: the account
    :param password: its password
    :param base_path: path in front of Onebox's, such as ``/feature/voc``
    :param host: address to bind
    :param port: port to bind; 0 takes a free one
    :param seed: for the data and for random faults
    :param until: when the last of those records was created, in the server's time; the end of yesterday if None
    :param http: ``h11``, or ``auto`` for httptools where it is installed
    :param settings: fields of :class:`~airflow_provider_onebox.sandbox.state.Settings`
    """

    def __init__(
        self,
        *,
        records: int = 1000,
        sites: Iterable[str] = ("169", "170"),
        email: str = EMAIL,
        password: str = PASSWORD,
        base_path: str = "",
        host: str = "127.0.0.1",
        port: int = 0,
        seed: int = 0,
        until: datetime | None = None,
        http: str = "auto",
        **settings: Any,
    ) -> None:
        self.state = State(records, sites, {email: password}, seed, until, **settings)
        self.email, self.password = email, password
        self._address, self._http = (host, port), http
        self.base_path = "/" + base_path.strip("/") if base_path.strip("/") else ""

    @property
    def credentials(self) -> dict[str, str]:
        """The form of a login that succeeds, at the first site."""
        return {"email": self.email, "password": self.password, "siteId": self.state.sites[0]}

    def start(self) -> None:
        """Bind the port and return when the server is ready."""
        family = socket.AF_INET6 if ":" in self._address[0] else socket.AF_INET
        # asyncio switches Nagle's algorithm off only where the protocol is named.
        self._socket = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind(self._address)
        except (OSError, OverflowError):
            self._socket.close()
            raise
        self.host, self.port = self._socket.getsockname()[:2]
        host = f"[{self.host}]" if ":" in self.host else self.host
        self.url = f"http://{host}:{self.port}{self.base_path}"
        config = uvicorn.Config(
            App(self.state, self.base_path),
            http=_protocol(self._http, self.state),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
        )
        ready = threading.Event()
        self._server = _Server(config, self.state, ready)
        self._thread = threading.Thread(target=self._run, args=(ready,), name="onebox-sandbox", daemon=True)
        self._thread.start()
        ready.wait()

    def _run(self, ready: threading.Event) -> None:
        try:
            asyncio.run(self._server.serve(sockets=[self._socket]))
        finally:
            ready.set()

    def stop(self) -> None:
        """Abort all connections and return when the port is free."""
        self._server.loop.call_soon_threadsafe(self._server.stopping.set)
        self._thread.join()
        self._socket.close()

    def disconnect(self) -> None:
        """Abort every open connection, idle ones too."""

        async def abort() -> None:
            for transport in list(self.state.transports):
                transport.abort()
            await asyncio.sleep(0)

        asyncio.run_coroutine_threadsafe(abort(), self._server.loop).result()

    def __enter__(self) -> Sandbox:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
