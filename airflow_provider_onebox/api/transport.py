"""The only door to the network: connections that are bounded in time and memory, and know what they have sent."""

from __future__ import annotations

import copy
import http.client
import io
import threading
import time
from functools import cache
from typing import TYPE_CHECKING, Any

import requests
from requests.adapters import HTTPAdapter
from requests.utils import select_proxy

from airflow_provider_onebox.api.settings import MAX_CONNECTIONS
from airflow_provider_onebox.api.token import Bearer

if TYPE_CHECKING:
    import socket

    from urllib3.connection import HTTPConnection
    from urllib3.connectionpool import HTTPConnectionPool

MAX_RESPONSE_BYTES = 64 * 1024 * 1024
"""The most bytes of a body that are read, after decompression: a user's own request, and an attachment."""


MAX_JSON_BYTES = 16 * 1024 * 1024
"""The most bytes of a page or a record, after decompression."""


MAX_LOGIN_BYTES = 1024 * 1024
"""The most bytes of the response to a login: a token, or the sites of an account."""


MAX_RESPONSE_TIMEOUTS = 10
"""How many times the connection's timeout a whole response may take, head and body."""


MAX_IDLE_BEFORE_WRITE = 0.5
"""Seconds after which a connection is too old for a write: the server may be closing it at this moment."""


READS = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that change nothing, so they may always be sent again."""


_ENCODINGS = ("", "identity", "gzip", "deflate")


class AbandonedError(Exception):
    """A request was not sent, because nobody waits for its response any longer."""


class Attempt:
    """What is known of one request. It belongs to that request, and is noted as it happens.

    The classes of errors do not say it: the same one can mean a connection that could not be made, and one that broke
    after the request.

    :param limit: the most bytes of the response's body to read; :data:`MAX_RESPONSE_BYTES` if ``None``.
    :param abandoned: is set once nobody waits for the response any longer.
    """

    def __init__(self, limit: int | None = None, abandoned: threading.Event | None = None) -> None:
        self.limit = limit
        self.abandoned = abandoned or threading.Event()
        #: Whether bytes of the request were handed to an established connection.
        self.is_sent = False
        #: Whether an old connection will do.
        self.is_read = True
        #: When it began, on the monotonic clock.
        self.began = 0.0
        #: The proxy that it went to, without user and password; empty for none.
        self.proxy = ""

    def __reduce__(self) -> tuple[type[Attempt], tuple[int | None]]:
        # A pickled response takes its request along; what became of that is of no use elsewhere.
        return Attempt, (self.limit,)

    def begin(self) -> None:
        """Note that the first byte is about to be sent.

        :raises AbandonedError: if nobody waits for the response any longer; nothing is sent then.
        """
        # In this order: whoever abandons the request and then finds it unsent can be sure that it stays so.
        self.is_sent = True
        if self.abandoned.is_set():
            self.is_sent = False
            raise AbandonedError


def attempt_of(request: requests.PreparedRequest) -> Attempt:
    """Return what is known of a request.

    :param request: a request that a session of ours has sent, or any other.
    :return: its attempt, made here if it has none.
    """
    known = vars(request)
    if "attempt" not in known:
        known["attempt"] = Attempt()
    attempt: Attempt = known["attempt"]
    return attempt


class _TimedSocketReader(io.RawIOBase):
    """Gives every read what is left of the response's time.

    A socket's own timeout starts anew with each byte, so a server that sends one now and then would hold a task for
    ever.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._raw = sock.makefile("rb", buffering=0)
        # That of pyOpenSSL, which other libraries put into urllib3, has the method inside alone.
        self._timeout = getattr(sock, "socket", sock).gettimeout()
        self._deadline = time.monotonic() + MAX_RESPONSE_TIMEOUTS * (self._timeout or 0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self._timeout is not None:
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("the whole response took too long")
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

    def begin(self) -> None:
        super().begin()
        # The base class skips 100 alone; the final response follows any of the interim ones.
        while self.status < 200 and self.status != 101:
            self.headers = None  # type: ignore[assignment]
            super().begin()


@cache
def _connection_class(base: type[HTTPConnection]) -> type[HTTPConnection]:
    """Derive from a class of connections one that is bounded, keeps the token hidden, and notes what it sends."""

    class Connection(base):  # type: ignore[valid-type,misc]
        response_class = _TimedResponse
        # http.client's own, which anybody can set for all, prints requests with token and password.
        debuglevel = 0
        #: That of the request that it sends.
        attempt = Attempt()
        #: When its last response began, on the monotonic clock.
        used = 0.0

        def putheader(self, header: str, *values: Any) -> None:
            if isinstance(values[0], Bearer) and values[0].token:
                values = (f"Bearer {values[0].token.value}",)
            super().putheader(header, *values)

        def endheaders(self, *args: Any, **kwargs: Any) -> None:
            if self.sock is None:
                self.connect()
            self.attempt.begin()
            super().endheaders(*args, **kwargs)

        def getresponse(self) -> Any:
            response = super().getresponse()
            self.used = time.monotonic()
            return response

    return Connection


@cache
def _pool_class(base: type[HTTPConnectionPool]) -> type[HTTPConnectionPool]:
    """Derive from a class of pools one whose instances are one request's view of a shared pool."""

    class Pool(base):  # type: ignore[valid-type,misc]
        shared: HTTPConnectionPool
        attempt: Attempt

        @property
        def pool(self) -> Any:
            # Not copied, so that a connection of a pool that is closed meanwhile is closed, too.
            return self.shared.pool

        def _get_conn(self, timeout: float | None = None) -> Any:
            conn = super()._get_conn(timeout)
            conn.attempt = self.attempt
            if not self.attempt.is_read and time.monotonic() - conn.used > MAX_IDLE_BEFORE_WRITE:
                conn.close()
            return conn

    return Pool


class ResponseTooLargeError(requests.RequestException):
    """A body went past its limit and was cut off."""


def read_body(response: requests.Response, most: int | None = None) -> bytes:
    """Read a body that is not read yet, up to a limit.

    :param response: the response.
    :param most: the most bytes to read, after decompression; :data:`MAX_RESPONSE_BYTES` if ``None``.
    :return: the body, which is the response's ``content`` from then on.
    :raises requests.RequestException: if the body is too large, breaks off, or is packed as nobody asked for.
    """
    if response._content is False:  # type: ignore[comparison-overlap]
        encoding = response.headers.get("Content-Encoding", "").strip().lower()
        if encoding not in _ENCODINGS and response.request.method != "HEAD":
            # Packed twice, a few bytes can stand for gigabytes.
            response.close()
            raise requests.exceptions.ContentDecodingError(
                "the response's Content-Encoding is not one that was asked for"
            )
        size, chunks, most = 0, [], most or MAX_RESPONSE_BYTES
        # Older urllib3 unpacks a piece in one go, to a thousand times its size. Of a page, a piece is all there is.
        for chunk in response.iter_content(8192 if encoding else 2**20):
            size += len(chunk)
            if size > most:
                response.close()
                raise ResponseTooLargeError(f"the response is larger than {most // 2**20} MiB", response=response)
            chunks.append(chunk)
        response._content = b"".join(chunks)
    return response.content or b""


class OneboxAdapter(HTTPAdapter):
    """Sends requests on bounded connections and notes in their :class:`Attempt` what becomes of them."""

    def __init__(self) -> None:
        super().__init__(pool_maxsize=MAX_CONNECTIONS)

    def after_fork(self) -> None:
        """Leave the parent's connections to the parent."""
        OneboxAdapter.__init__(self)

    def get_connection_with_tls_context(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> Any:
        """Return a view of the pool for a request; its connections are bounded.

        :param request: the request.
        :param args: as for the base class.
        :param kwargs: likewise.
        :return: the view, for this request alone.
        """
        shared: Any = super().get_connection_with_tls_context(request, *args, **kwargs)
        if shared.ConnectionCls.response_class is not _TimedResponse:
            shared.ConnectionCls = _connection_class(shared.ConnectionCls)
        pool = copy.copy(shared)
        pool.__class__ = _pool_class(shared.__class__)
        pool.shared, pool.attempt = shared, attempt_of(request)
        return pool

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: Any = None,
        verify: Any = True,
        cert: Any = None,
        proxies: Any = None,
    ) -> requests.Response:
        """Send a request and read the response's body, up to its limit, unless it is to be streamed.

        :param request: the prepared request.
        :param stream: whether to leave the body to the caller.
        :param timeout: seconds for connecting and for each read.
        :param verify: as for :func:`requests.request`.
        :param cert: likewise.
        :param proxies: likewise.
        :return: the response.
        """
        attempt = attempt_of(request)
        attempt.is_sent, attempt.is_read, attempt.began = False, request.method in READS, time.monotonic()
        attempt.proxy = _without_user(select_proxy(request.url or "", proxies) or "") if proxies else ""
        response = super().send(request, True, timeout, verify, cert, proxies)
        if not stream:
            read_body(response, attempt.limit)
        return response


def _without_user(url: str) -> str:
    # No parser: an address that makes no sense is for requests to judge.
    scheme, _, address = url.rpartition("://")
    return f"{scheme or 'http'}://{address.rpartition('@')[2]}" if url else ""
