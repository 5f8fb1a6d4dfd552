"""The only door to the network: a session that is bounded in time and memory and speaks to one host."""

from __future__ import annotations

import http.client
import io
import threading
import time
from functools import cache
from http.cookiejar import DefaultCookiePolicy
from typing import TYPE_CHECKING, Any

import requests
from requests.adapters import HTTPAdapter
from requests.utils import select_proxy

from airflow_provider_onebox.api.settings import MAX_CONNECTIONS

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from typing import NoReturn

    from urllib3.connection import HTTPConnection

    from airflow_provider_onebox.api.settings import Settings
from airflow_provider_onebox.api.token import Bearer

MAX_RESPONSE_BYTES = 64 * 1024 * 1024
"""The largest body that is read, after decompression."""


MAX_RESPONSE_TIMEOUTS = 10
"""How many times the connection's timeout a whole response may take, head and body."""


MAX_IDLE_BEFORE_WRITE = 0.5
"""Seconds after which a connection is too old for a write: the server may be closing it at this moment."""


READS = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that may be sent again whatever became of the first try."""


_ENCODINGS = ("", "identity", "gzip", "deflate")


class Exchange(threading.local):
    """What is known of the request that this thread sends, or has sent last.

    It is noted as it happens. The classes of errors do not tell it: the same one can come of a connection that
    could not be made and of one that broke after the request.
    """

    is_write = True
    #: Whether bytes of the request were handed to an established connection.
    is_sent = True
    #: When it began, on the monotonic clock.
    began = 0.0
    #: The proxy that it went to, without user and password; empty for none.
    proxy = ""


exchange = Exchange()


class _TimedSocketReader(io.RawIOBase):
    """Gives every read what is left of the response's time.

    A socket's own timeout starts anew with each byte, so a server that sends one now and then holds a
    task for ever.
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


def _strip_traceback(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Let an error leave without the frames below: they hold a request as it is sent, with the token, or a socket."""
    try:
        return call(*args, **kwargs)
    except OSError as error:
        failure = error.with_traceback(None)
    raise failure


@cache
def _connection_class(base: type[HTTPConnection]) -> type[HTTPConnection]:
    """Make a pool's own class of connections, whatever it is, bounded, discreet and honest about what it sent."""

    class Connection(base):  # type: ignore[valid-type,misc]
        response_class = _TimedResponse
        # http.client's own, which anybody can set for all, prints requests with token and password.
        debuglevel = 0
        _used = 0.0

        @property
        def is_connected(self) -> bool:
            is_old = exchange.is_write and time.monotonic() - self._used > MAX_IDLE_BEFORE_WRITE
            return not is_old and super().is_connected

        def _tunnel(self) -> None:
            _strip_traceback(super()._tunnel)

        def putheader(self, header: str, *values: Any) -> None:
            super().putheader(
                header, *(f"Bearer {v.token.value}" if isinstance(v, Bearer) and v.token else v for v in values)
            )

        def endheaders(self, *args: Any, **kwargs: Any) -> None:
            if self.sock is None:
                self.connect()
            exchange.is_sent = True
            _strip_traceback(super().endheaders, *args, **kwargs)

        def getresponse(self) -> Any:
            response = super().getresponse()
            self._used = time.monotonic()
            return response

    return Connection


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
            # Packed twice, a few bytes can stand for gigabytes, which older urllib3 unpacks in one go.
            response.close()
            raise requests.exceptions.ContentDecodingError(
                "the response's Content-Encoding is not one that was asked for"
            )
        size, chunks, most = 0, [], most or MAX_RESPONSE_BYTES
        for chunk in response.iter_content(65536):
            size += len(chunk)
            if size > most:
                response.close()
                raise ResponseTooLargeError(
                    f"the response is larger than {most // 2**20} MiB; request fewer rows per page", response=response
                )
            chunks.append(chunk)
        response._content = b"".join(chunks)
    return response.content or b""


class OneboxAdapter(HTTPAdapter):
    """Sends requests on bounded connections and records their fate in :data:`exchange`.

    :param most: the most bytes of a body that it reads under a status of success; ``None`` for
        :data:`MAX_RESPONSE_BYTES`.
    """

    def __init__(self, most: int | None = None) -> None:
        self._most = most
        super().__init__(pool_maxsize=MAX_CONNECTIONS)

    def after_fork(self) -> None:
        """Leave the parent's connections to the parent."""
        OneboxAdapter.__init__(self, self._most)

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        """Give the pool for a request; its connections are bounded.

        :param args: as for the base class.
        :param kwargs: likewise.
        :return: the pool.
        """
        pool: Any = super().get_connection_with_tls_context(*args, **kwargs)
        if pool.ConnectionCls.response_class is not _TimedResponse:
            pool.ConnectionCls = _connection_class(pool.ConnectionCls)
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
        exchange.is_write, exchange.is_sent, exchange.began = request.method not in READS, False, time.monotonic()
        exchange.proxy = _without_user(select_proxy(request.url or "", proxies) or "")
        response = super().send(request, True, timeout, verify, cert, proxies)
        if not stream:
            read_body(response, self._most if response.status_code // 100 == 2 else None)
        return response


class OneboxSession(requests.Session):
    """A :class:`requests.Session` with the connection's timeout, TLS settings and proxies as defaults.

    Redirects are never followed and cookies never kept, so nothing that is sent reaches another host. A request
    that carries a token shows ``Bearer ***`` in its place.

    :param settings: the checked connection.
    :param adapter: another session's, to share its connections.
    """

    def __init__(self, settings: Settings, adapter: OneboxAdapter | None = None) -> None:
        super().__init__()
        self._settings = settings
        self.proxies = dict(settings.proxies)
        self.headers["Accept-Encoding"] = "gzip, deflate"
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        # A proxy from the environment would carry the password of a plain-HTTP connection in the clear.
        self.trust_env = settings.base_url.startswith("https:")
        adapter = adapter or OneboxAdapter()
        self.mount("https://", adapter)
        self.mount("http://", adapter)

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "A session of Onebox is not pickled, because it holds a login: get one from OneboxHook.get_conn() where it "
            "is needed."
        )

    def get_redirect_target(self, resp: requests.Response) -> None:  # noqa: ARG002 - signature of the base
        """Find no redirect to follow, wherever the response points.

        :param resp: the response.
        :return: always ``None``.
        """
        return

    def merge_environment_settings(self, url: Any, proxies: Any, stream: Any, verify: Any, cert: Any) -> Any:
        """Merge the environment's settings with the connection's; the connection's proxies win.

        :param url: where the request goes.
        :param proxies: the request's own proxies, which win over all.
        :param stream: as for the base class.
        :param verify: likewise.
        :param cert: likewise.
        :return: the options to send the request with.
        """
        own = {**self.proxies, **(proxies or {})}
        options = super().merge_environment_settings(url, proxies, stream, verify, cert)
        if select_proxy(url, own):
            options["proxies"] = own
        return options

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        """Send a prepared request with the connection's timeout, TLS settings and proxies, and the current token.

        :param request: the prepared request.
        :param kwargs: as for :meth:`requests.Session.send`; ``timeout`` in seconds.
        :return: the response.
        """
        if "proxies" not in kwargs:
            kwargs = {**self.merge_environment_settings(request.url, {}, None, None, None), **kwargs}
        if kwargs.get("timeout") is None:
            kwargs["timeout"] = self._settings.timeout
        # Requests lets REQUESTS_CA_BUNDLE win over a session's own setting; an explicit one must stand.
        if self._settings.verify is not True:
            kwargs["verify"] = self._settings.verify
        bearer = request.headers.get("Authorization")
        if isinstance(bearer, Bearer):
            request = request.copy()
            request.headers["Authorization"] = Bearer(bearer.tokens, bearer.tokens.get())
        return super().send(request, **kwargs)


def _without_user(url: str) -> str:
    # No parser: an address that makes no sense is for requests to judge.
    scheme, _, address = url.rpartition("://")
    return f"{scheme or 'http'}://{address.rpartition('@')[2]}" if url else ""
