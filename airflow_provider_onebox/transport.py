"""The HTTP session: bounded in time and memory, bound to one host, deaf to redirects."""

from __future__ import annotations

import http.client
import io
import time
from http.cookiejar import DefaultCookiePolicy
from typing import TYPE_CHECKING, Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

if TYPE_CHECKING:
    import socket

    from airflow_provider_onebox.settings import Settings

MAX_REPLY_BYTES = 64 * 1024 * 1024
"""The largest body that is read, after decompression."""

MAX_REPLY_TIMEOUTS = 10
"""How many times the connection's timeout a whole reply may take, head and body."""

MAX_CONNECTIONS = 32
"""The most connections that one session keeps open."""


class _TimedSocketReader(io.RawIOBase):
    """Gives every read what is left of the reply's time.

    A socket's own timeout starts anew with each byte, so a server that sends one now and then holds a
    task for ever.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._raw = sock.makefile("rb", buffering=0)
        self._timeout = sock.gettimeout()
        self._deadline = time.monotonic() + MAX_REPLY_TIMEOUTS * (self._timeout or 0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self._timeout is not None:
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("the whole reply took too long")
            self._sock.settimeout(min(self._timeout, left))
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _TimedSocket:
    """The one method of a socket that a response uses."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def makefile(self, mode: str) -> io.BufferedReader:  # noqa: ARG002 - the signature of socket.makefile
        return io.BufferedReader(_TimedSocketReader(self._sock))


class _TimedResponse(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(_TimedSocket(sock), *args, **kwargs)  # type: ignore[arg-type]


class _TimedHTTPConnection(HTTPConnection):
    response_class = _TimedResponse


class _TimedHTTPSConnection(HTTPSConnection):
    response_class = _TimedResponse


class _TimedHTTPPool(HTTPConnectionPool):
    ConnectionCls = _TimedHTTPConnection


class _TimedHTTPSPool(HTTPSConnectionPool):
    ConnectionCls = _TimedHTTPSConnection


_POOLS = {"http": _TimedHTTPPool, "https": _TimedHTTPSPool}


class ReplyTooLargeError(requests.RequestException):
    """A body went past :data:`MAX_REPLY_BYTES` and was cut off."""


class _BoundedAdapter(HTTPAdapter):
    """Reads a body up to :data:`MAX_REPLY_BYTES`, in the time that a reply has."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(*args, **kwargs)
        manager.pool_classes_by_scheme = _POOLS
        return manager

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: Any = None,
        verify: Any = True,
        cert: Any = None,
        proxies: Any = None,
    ) -> requests.Response:
        response = super().send(request, True, timeout, verify, cert, proxies)
        if not stream:
            size, chunks = 0, []
            for chunk in response.iter_content(65536):
                size += len(chunk)
                if size > MAX_REPLY_BYTES:
                    response.close()
                    raise ReplyTooLargeError(
                        f"the reply is larger than {MAX_REPLY_BYTES // 2**20} MiB; ask for fewer rows a page",
                        response=response,
                    )
                chunks.append(chunk)
            response._content = b"".join(chunks)
        return response


class OneboxSession(requests.Session):
    """A :class:`requests.Session` with the connection's timeout, TLS settings and proxies as defaults.

    Redirects are never followed and cookies never kept, so nothing that is sent reaches another host.

    :param settings: the checked connection.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self._settings = settings
        self.proxies = dict(settings.proxies)
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        # A proxy from the environment would carry the password of a plain-HTTP connection in the clear.
        self.trust_env = settings.base_url.startswith("https:")
        adapter = _BoundedAdapter(pool_maxsize=MAX_CONNECTIONS)
        self.mount("https://", adapter)
        self.mount("http://", adapter)

    def get_redirect_target(self, resp: requests.Response) -> None:  # noqa: ARG002 - signature of the base
        """Find no redirect to follow, wherever the reply points.

        :param resp: the reply.
        :return: always ``None``.
        """
        return

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        """Send a prepared request with the connection's timeout and TLS settings.

        :param request: the prepared request.
        :param kwargs: as for :meth:`requests.Session.send`; ``timeout`` in seconds.
        :return: the reply.
        """
        if kwargs.get("timeout") is None:
            kwargs["timeout"] = self._settings.timeout
        # Requests lets REQUESTS_CA_BUNDLE win over a session's own setting; an explicit one must stand.
        if self._settings.verify is not True:
            kwargs["verify"] = self._settings.verify
        return super().send(request, **kwargs)
