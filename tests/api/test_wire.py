"""The wire, exactly: what was sent, what came back, whose fault it was; over sockets, against peers that misbehave."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import io
import json
import logging
import os
import re
import socket
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from traceback import walk_tb

import pytest
import requests
import trustme
from rich.console import Console
from rich.traceback import Traceback

from airflow_provider_onebox.api import transport
from airflow_provider_onebox.api.client import OneboxClient
from airflow_provider_onebox.api.settings import Settings
from airflow_provider_onebox.api.token import Token, TokenSource
from airflow_provider_onebox.api.transport import OneboxAdapter
from airflow_provider_onebox.exceptions import (
    OneboxAuthError,
    OneboxConfigError,
    OneboxError,
    OneboxRequestError,
    OneboxResponseError,
    OneboxUnavailableError,
    OneboxUncertainWriteError,
    OneboxUnusableResultError,
)

TOKEN = "opaque-token-0123456789"
NEW_TOKEN = "opaque-token-9876543210"
PASSWORD = "p@ss w/rd&100%"


def http_reply(status=200, body=b"{}", *headers):
    """Put a reply together."""
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [b"HTTP/1.1 %d X" % status, b"Content-Length: %d" % len(body), *headers, b"", b""]
    return b"\r\n".join(lines) + body


EXPIRED = {"_meta": {"status": "ERROR"}, "records": {"errorCode": 401, "userMessage": "Expired token"}}
LOGIN = {"response_code": "200", "response_status": "Success", "token": NEW_TOKEN}


class Peer:
    """A server on loopback that gives each connection to `answer` in a thread of its own."""

    def __init__(self, answer, context=None):
        self.answer, self.context = answer, context
        self.requests, self.open = [], []
        self.connections = 0
        self.over = threading.Event()

    def __enter__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.url = f"http{'s' if self.context else ''}://127.0.0.1:{self.port}"
        self.threads = [threading.Thread(target=self.accept)]
        self.threads[0].start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.threads[0].join()
        for conn in self.open:
            with contextlib.suppress(OSError):
                conn.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join()

    def accept(self):
        while True:
            try:
                raw, _ = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            self.open.append(raw)
            self.threads.append(threading.Thread(target=self.serve, args=(raw,)))
            self.threads[-1].start()

    def serve(self, raw):
        # The client hangs up early, which is what most tests want.
        with raw, contextlib.suppress(OSError):
            raw.settimeout(20)
            if self.context:
                with self.wrap(self.context, raw) as conn:
                    self.answer(self, conn)
            else:
                self.answer(self, raw)

    def wrap(self, context, conn):
        """Speak TLS on a connection."""
        self.open.append(context.wrap_socket(conn, server_side=True))
        return self.open[-1]

    def read(self, conn):
        """Read one request, whole; None if the client has hung up."""
        data = b""
        while b"\r\n\r\n" not in data:
            more = conn.recv(65536)
            if not more:
                return None
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: ([0-9]+)", head)
        while length and len(body) < int(length[1]):
            body += conn.recv(65536)
        self.requests.append(head + b"\r\n\r\n" + body)
        return self.requests[-1]

    def lines(self):
        """List the first lines of what was asked."""
        return [request.split(b" HTTP/")[0].decode() for request in self.requests]

    def tokens(self):
        """List the tokens that requests carried, those of logins left out."""
        return [
            found[1].decode()
            for found in (re.search(rb"Authorization: Bearer (\S+)", r) for r in self.requests)
            if found
        ]


def script(*replies):
    """Answer one request after the other, on whatever connections they come; logins are answered apart."""
    left = list(replies)

    def answer(peer, conn):
        while request := peer.read(conn):
            if b"/api/authenticate" in request.split(b"\r\n")[0]:
                conn.sendall(http_reply(200, LOGIN))
            else:
                conn.sendall(left.pop(0) if len(left) > 1 else left[0])

    return answer


@pytest.fixture(scope="module")
def ca(tmp_path_factory):
    """A CA of the tests' own, and the path of its certificate."""
    authority = trustme.CA()
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return authority, str(path)


@pytest.fixture(scope="module")
def tls(ca):
    """A server's TLS context with a certificate for 127.0.0.1."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca[0].issue_cert("127.0.0.1", "dev.example").configure_cert(context)
    return context


def client_of(url, *, token=TOKEN, time_limit=None, **options):
    """Make a client that has a token and does not really wait between tries."""
    waits = []
    settings = Settings("crm", url, "care@example.com", PASSWORD, "169", **{"timeout": 5, **options})
    client = OneboxClient(settings, time_limit=time_limit, pause=lambda abandoned, seconds: waits.append(seconds))
    if token:
        client = client.with_token(Token(token))
    client.waits = waits
    return client


def read(client):
    """Make a read."""
    return client.request("GET", "ticketrz")


def write(client, **arguments):
    """Make a write."""
    return client.request("POST", "ticket/create", **(arguments or {"json": {"subject": "s"}}))


# Streams


@pytest.mark.parametrize("status", [400, 401, 500])
def test_stream(status):
    """A reply that is streamed is the caller's to read, and an expired token is renewed before, whatever its status."""
    expired = http_reply(status, {"response_code": 401, "message": "Expired token"})
    with Peer(script(expired, http_reply(200, {"count": 1}))) as peer:
        with client_of(peer.url).session.get(f"{peer.url}/api/ticketrz", stream=True) as response:
            assert json.loads(response.raw.read()) == {"count": 1}
        assert len(set(peer.tokens())) == 2
        with client_of(peer.url).session.get(f"{peer.url}/api/ticketrz", stream=True) as response:
            assert json.loads(response.raw.read()) == {"count": 1}


# Proxies


def refusing_proxy(status=b"503 No way"):
    """Answer every CONNECT with a refusal."""

    def answer(peer, conn):
        if peer.read(conn):
            conn.sendall(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n")

    return Peer(answer)


@pytest.mark.parametrize("key", ["https", "all", "https://dev.example"])
def test_proxy_of_the_connection_wins(key, monkeypatch):
    """The connection's proxy is used and not the environment's, for the login, for calls, and for a user's own."""
    monkeypatch.delenv("NO_PROXY", raising=False)
    with refusing_proxy() as own, refusing_proxy() as other:
        monkeypatch.setenv("HTTPS_PROXY", other.url)
        monkeypatch.setenv("ALL_PROXY", other.url)
        client = client_of("https://dev.example", proxies=((key, own.url),), max_retries=0)
        for call in (client.login, lambda: write(client)):
            with pytest.raises(OneboxUnavailableError, match="503"):
                call()
        for call in (
            lambda: client.session.get("https://dev.example/api/x"),
            lambda: client.session.send(requests.Request("GET", "https://dev.example/api/x").prepare()),
        ):
            with pytest.raises(requests.exceptions.ProxyError):
                call()
        # NO_PROXY is a word about what the environment gave.
        monkeypatch.setenv("NO_PROXY", "dev.example")
        with pytest.raises(OneboxUnavailableError, match="503"):
            client.login()
        assert own.lines() == ["CONNECT dev.example:443"] * 5
        assert other.requests == []


def test_proxy_of_a_request_wins():
    """A request that names a proxy takes that one and not the connection's."""
    with refusing_proxy() as own, refusing_proxy() as other:
        session = client_of("https://dev.example", proxies=(("https", other.url),)).session
        with pytest.raises(requests.exceptions.ProxyError):
            session.get("https://dev.example/api/x", proxies={"https": own.url})
        assert (own.connections, other.connections) == (1, 0)


def test_proxy_of_the_environment(monkeypatch, tls, ca):
    """Without one of its own a connection takes the environment's proxy, and none for a host in NO_PROXY."""
    monkeypatch.delenv("NO_PROXY", raising=False)
    with refusing_proxy() as proxy, Peer(script(http_reply()), tls) as onebox:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url.replace("//", "//me:proxypass@"))
        client = client_of(onebox.url, verify=ca[1], max_retries=0)
        with pytest.raises(OneboxUnavailableError, match=f"the proxy {proxy.url} can't be reached") as caught:
            write(client)
        assert "proxypass" not in str(caught.value)
        assert onebox.requests == []
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        assert write(client) == {}
        assert len(proxy.requests) == 1


def closed_port():
    """A port of this machine that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@pytest.mark.parametrize("url", ["https://dev.example", "http://dev.example"])
def test_unreachable_proxy_is_named(url):
    """What can't be reached is the proxy, and that is what the error says; nothing was sent."""
    port = closed_port()
    scheme = url.partition(":")[0]
    client = client_of(url, proxies=((scheme, f"http://me:proxypass@127.0.0.1:{port}"),))
    with pytest.raises(OneboxUnavailableError, match=f"the proxy http://127.0.0.1:{port} can't be reached") as caught:
        write(client)
    assert str(caught.value).endswith("can't be reached: Connection refused. That was try 4 of 4.")
    assert "proxypass" not in str(caught.value)
    assert caught.value.uncertain is False
    assert len(client.waits) == 3


@pytest.mark.parametrize(
    ("status", "hint"),
    [(b"407 Proxy Authentication Required", "its user or password"), (b"403 Forbidden", "the way to Onebox")],
)
def test_proxy_that_says_no(status, hint):
    """A proxy that rejects the password, or the host, is not asked again with the same; the write never left."""
    with refusing_proxy(status) as proxy:
        client = client_of("https://dev.example", proxies=(("https", proxy.url.replace("//", "//me:proxypass@")),))
        words = f"the proxy {proxy.url} rejected {hint}.*{status[:3].decode()}"
        with pytest.raises(OneboxConfigError, match=words) as caught:
            write(client)
        assert "proxypass" not in str(caught.value)
        assert caught.value.uncertain is False
        assert len(proxy.requests) == 1


@pytest.mark.parametrize("status", [b"503 Busy", b"429 Slow down", b"408 Timeout", b"502 Bad Gateway", b"500 Oops"])
def test_proxy_that_is_busy(status):
    """A proxy that can't now is asked again, for a write too: it never left."""
    with refusing_proxy(status) as proxy:
        client = client_of("https://dev.example", proxies=(("https", proxy.url),))
        with pytest.raises(OneboxUnavailableError, match="4 of 4") as caught:
            write(client)
        assert caught.value.uncertain is False
        assert len(proxy.requests) == 4


def test_407_of_a_forwarding_proxy():
    """A proxy that passes plain HTTP on has got the request: its 407 is no error of the settings alone."""
    with Peer(script(http_reply(407, b"<html>"))) as proxy:
        client = client_of("http://dev.example", proxies=(("http", proxy.url),))
        words = f"the proxy {proxy.url} rejected its user or password \\(407\\)"
        for call, error in ((write, OneboxUncertainWriteError), (read, OneboxUnusableResultError)):
            with pytest.raises(error, match=words) as caught:
                call(client)
            assert (caught.value.uncertain, caught.value.retryable, caught.value.status) == (True, False, 407)
        assert len(proxy.requests) == 2


def socks(peer, conn):
    """Speak SOCKS5 as a server that itself answers what is asked through it."""
    conn.recv(3)
    conn.sendall(b"\x05\x00")
    conn.recv(262)
    conn.sendall(b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00")
    script(http_reply(200, {"ticketId": "5"}))(peer, conn)


def test_socks_proxy():
    """SOCKS proxies work, with the same bounds; one that can't be reached is named."""
    with Peer(socks) as proxy:
        address = proxy.url.replace("http", "socks5h")
        client = client_of("http://dev.example", proxies=(("http", address),))
        assert write(client) == {"ticketId": "5"}
        assert write(client) == {"ticketId": "5"}
        assert proxy.lines() == ["POST /api/ticket/create"] * 2
        assert proxy.connections == 1
    with pytest.raises(OneboxUnavailableError, match=re.escape(f"(through the proxy {address})")) as caught:
        write(client)
    assert caught.value.uncertain is False


def test_socks_proxy_without_its_package(monkeypatch):
    """Where PySocks is not installed, the error says how to install it."""

    def missing(*args, **kwargs):
        raise requests.exceptions.InvalidSchema("Missing dependencies for SOCKS support.")

    monkeypatch.setattr("requests.adapters.SOCKSProxyManager", missing)
    client = client_of("http://dev.example", proxies=(("http", "socks5h://127.0.0.1:1"),))
    with pytest.raises(OneboxConfigError, match=re.escape("pip install 'requests[socks]'")):
        write(client)


# Sent or not


def hang_up(peer, conn):
    """Read the beginning of a handshake and hang up."""
    conn.recv(100)
    conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (hang_up, "can't be reached: "),
        (
            lambda peer, conn: peer.over.wait(20),
            r"can't be reached: no complete response in 0\.[2-9] s .*'timeout' is 0\.2 s",
        ),
    ],
)
def test_write_that_met_a_bad_handshake(answer, words):
    """A TLS handshake that fails, for whatever but a certificate, is tried again: the write never left."""
    with Peer(answer) as peer:
        client = client_of(f"https://127.0.0.1:{peer.port}", timeout=0.2)
        with pytest.raises(OneboxUnavailableError, match=words) as caught:
            write(client)
        assert caught.value.uncertain is False
        assert peer.connections == 4


@pytest.mark.parametrize("is_proxy", [False, True])
def test_plain_http_where_tls_is_expected(is_proxy):
    """An https URL whose port speaks plain HTTP is an error of the settings, not asked again, whoever's it is."""
    with Peer(lambda peer, conn: (conn.recv(100), conn.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n"))) as peer:
        address = f"https://127.0.0.1:{peer.port}"
        client = client_of("https://dev.example", proxies=(("https", address),)) if is_proxy else client_of(address)
        words = f"{'the proxy ' * is_proxy}{address} speaks no TLS on this port"
        with pytest.raises(OneboxConfigError, match=words) as caught:
            write(client)
        assert caught.value.uncertain is False
        assert peer.connections == 1


def test_write_to_an_untrusted_certificate(tls):
    """An untrusted certificate is named with the field that helps, once; the write never left."""
    with Peer(script(http_reply()), tls) as peer:
        with pytest.raises(OneboxConfigError, match=r"not trusted.*'verify'") as caught:
            write(client_of(peer.url))
        assert caught.value.uncertain is False
        assert (peer.requests, peer.connections) == ([], 1)


def test_adapter_by_itself(tls):
    """An adapter that is used without its session checks certificates and reads the reply, too."""
    with Peer(script(http_reply()), tls) as peer:
        with pytest.raises(requests.exceptions.SSLError):
            OneboxAdapter().send(requests.Request("GET", peer.url).prepare())
        assert peer.requests == []
    with Peer(script(http_reply(200, {"count": 1}))) as peer:
        response = OneboxAdapter().send(requests.Request("GET", peer.url).prepare())
        assert response.raw.read() == b""
        assert response.json() == {"count": 1}


def cut(peer, conn):
    """Read a request and hang up."""
    peer.read(conn)


@pytest.mark.parametrize("secure", [False, True])
def test_write_that_was_sent(secure, tls, ca):
    """A write that has left and is not answered is uncertain, and is sent once."""
    with Peer(cut, tls if secure else None) as peer:
        client = client_of(peer.url, verify=ca[1])
        with pytest.raises(OneboxUncertainWriteError) as caught:
            write(client)
        assert caught.value.uncertain is True
        assert len(peer.requests) == 1


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
def test_read_that_was_sent(method):
    """A read that is not answered is sent again, and is never uncertain."""
    with Peer(cut) as peer:
        with pytest.raises(OneboxUnavailableError):
            client_of(peer.url, max_retries=1).request(method, "ticketrz")
        assert len(peer.requests) == 2


def test_write_whose_login_broke_off():
    """A login that may have arrived says nothing of the write that it was for: that one never left."""
    with Peer(cut) as peer:
        with pytest.raises(OneboxUnavailableError, match="POST authenticate") as caught:
            write(client_of(peer.url, token=None))
        assert caught.value.uncertain is False
        assert peer.lines() == ["POST /api/authenticate"] * 4


def test_adapter_of_somebody_else():
    """Where another adapter sends, nothing is known of a write that fails, and it is uncertain."""

    class Failing(requests.adapters.BaseAdapter):
        def send(self, *args, **kwargs):
            raise requests.ConnectionError("no idea")

        def close(self):
            pass

    client = client_of("https://dev.example")
    client.session.mount("https://", Failing())
    with pytest.raises(OneboxUncertainWriteError, match="no idea"):
        write(client)


def test_writes_avoid_old_connections(monkeypatch):
    """A write goes out on a new connection where the old one has idled; reads and quick writes share one."""
    with Peer(script(http_reply())) as peer:
        client = client_of(peer.url)
        for _ in range(5):
            write(client)
        assert peer.connections == 1
        monkeypatch.setattr(transport, "MAX_IDLE_BEFORE_WRITE", 0)
        client.request("GET", "ticketrz")
        assert peer.connections == 1
        write(client)
        assert peer.connections == 2


def test_write_races_an_idle_close(monkeypatch):
    """A server that closes a connection as the next write arrives on it loses none and puts none uncertain."""
    monkeypatch.setattr(transport, "MAX_IDLE_BEFORE_WRITE", 0)

    def answer(peer, conn):
        if peer.read(conn):
            conn.sendall(http_reply())
            # The close comes with the next request, which is what a race with an idle limit looks like.
            conn.recv(1)

    with Peer(answer) as peer:
        client = client_of(peer.url)
        for _ in range(10):
            write(client)
        assert len(peer.requests) == 10


def test_writes_through_a_tunnel_avoid_old_connections(monkeypatch, tls, ca):
    """A connection that is made anew goes through the proxy again."""
    monkeypatch.setattr(transport, "MAX_IDLE_BEFORE_WRITE", 0)

    def tunnel(peer, conn):
        if peer.read(conn):
            conn.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            with peer.wrap(tls, conn) as inner:
                script(http_reply())(peer, inner)

    with Peer(tunnel) as proxy:
        client = client_of("https://dev.example", verify=ca[1], proxies=(("https", proxy.url),))
        for _ in range(2):
            write(client)
        assert proxy.lines() == ["CONNECT dev.example:443", "POST /api/ticket/create"] * 2


# What came back


@pytest.mark.parametrize("status", [200, 400, 401, 403, 500])
@pytest.mark.parametrize("arguments", [{"json": {"a": 1}}, {"data": {"a": "1"}}, {"files": {"f": b"1"}}])
def test_expired_token_under_any_status(status, arguments):
    """An expired token is renewed once and the write sent again, whole, whatever the HTTP status."""
    with Peer(script(http_reply(status, EXPIRED), http_reply(200, {"ticketId": "5"}))) as peer:
        assert write(client_of(peer.url), **arguments) == {"ticketId": "5"}
        assert peer.tokens() == [TOKEN, NEW_TOKEN]
        first, _, second = peer.requests
        assert first.partition(b"\r\n\r\n")[2] == second.partition(b"\r\n\r\n")[2] != b""


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"message": "Unauthorized"}'])
def test_bare_401_renews(body):
    """So is one that a 401 without Onebox's envelope tells of."""
    with Peer(script(http_reply(401, body), http_reply())) as peer:
        assert client_of(peer.url).request("GET", "ticketrz") == {}
        assert peer.tokens() == [TOKEN, NEW_TOKEN]


@pytest.mark.parametrize("status", [200, 401])
def test_second_envelope_is_not_replayed(status):
    """{"error": ...} rejects a write with Onebox's words; it is neither sent again nor followed by a login."""
    with Peer(script(http_reply(status, {"error": "the channel is in use"}))) as peer:
        with pytest.raises(OneboxRequestError, match="the channel is in use"):
            write(client_of(peer.url))
        assert peer.lines() == ["POST /api/ticket/create"]


def test_429_under_200_is_retried():
    """A write that Onebox answers with 429 in the body is sent again: it was not done."""
    slow = {"_meta": {"status": "ERROR"}, "records": {"errorCode": 429, "userMessage": "slow down"}}
    with Peer(script(http_reply(200, slow, b"Retry-After: 3"), http_reply())) as peer:
        client = client_of(peer.url)
        assert write(client) == {}
        assert client.waits == [3]


def test_response_code_at_the_login():
    """A login that response_code rejects fails at once, with a token beside it as well."""
    for more in ({}, {"token": NEW_TOKEN}):
        reply = http_reply(200, {"response_code": "401", "response_status": "Wrong password", **more})
        with Peer(lambda peer, conn, reply=reply: peer.read(conn) and conn.sendall(reply)) as peer:
            with pytest.raises(OneboxAuthError, match="Wrong password"):
                client_of(peer.url, token=None).login()
            assert len(peer.requests) == 1


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n{}\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\nSet-Cookie: \xff=\x00; expires=never\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"nonsense\r\n\r\n",
    ],
)
def test_reply_that_breaks_the_library(raw):
    """Whatever the libraries raise of a reply, a write that was sent is uncertain, and is not sent again."""

    def answer(peer, conn):
        if peer.read(conn):
            conn.sendall(raw)

    with Peer(answer) as peer:
        with pytest.raises(OneboxUncertainWriteError):
            write(client_of(peer.url))
        assert len(peer.requests) == 1
        with pytest.raises((OneboxUnavailableError, OneboxResponseError)):
            client_of(peer.url, max_retries=0).request("GET", "ticketrz")


def test_redirect_to_what_is_no_address():
    """A Location that can't be parsed is shown as it is."""
    answer = script(http_reply(302, b"", b"Location: http://[::1"))
    with Peer(answer) as peer, pytest.raises(OneboxResponseError, match=re.escape("http://[::1")):
        read(client_of(peer.url))


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirected_write(status):
    """PHP redirects to what a form has created, so a redirected write is uncertain; one to the login page is not."""
    with Peer(
        script(http_reply(status, b"", b"Location: /ticket/5"), http_reply(status, b"", b"Location: /Login"))
    ) as peer:
        with pytest.raises(OneboxUncertainWriteError, match="'/ticket/5'"):
            write(client_of(peer.url))
        with pytest.raises(OneboxResponseError, match="That is its login page") as caught:
            write(client_of(peer.url))
        assert (caught.value.uncertain, caught.value.retryable) == (False, False)
        assert len(peer.requests) == 2


@pytest.mark.parametrize("status", [102, 103])
def test_interim_replies_are_skipped(status):
    """Early hints are not the answer; the same connection serves on."""
    early = b"HTTP/1.1 100 Continue\r\n\r\n" + b"HTTP/1.1 %d Hints\r\nLink: </x>\r\n\r\n" % status * 2
    with Peer(script(early + http_reply(200, {"ticketId": "5"}))) as peer:
        client = client_of(peer.url)
        assert write(client) == write(client) == {"ticketId": "5"}
        assert peer.connections == 1


def test_switch_of_protocols():
    """101 is no interim reply: nothing else follows, so it is not waited for."""
    with Peer(script(http_reply(101, b""))) as peer, pytest.raises(OneboxResponseError, match="101"):
        client_of(peer.url, max_retries=0).request("GET", "ticketrz")


def test_head(sandbox):
    """HEAD gives an empty answer, or the error of its status."""
    with Peer(script(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\nContent-Encoding: br\r\n\r\n")) as peer:
        assert client_of(peer.url).request("HEAD", "ticketrz") == {}
    no = b"HTTP/1.1 404 No\r\nContent-Length: 99\r\n\r\n"
    with Peer(script(no)) as peer, pytest.raises(OneboxRequestError, match="404"):
        client_of(peer.url).request("head", "ticketrz/1")


@pytest.mark.parametrize("method", ["GET\n", "", "G T", "GÉT", None, 5])
def test_method_is_checked(method):
    """A method that is none is named, and nothing is sent."""
    with Peer(script(http_reply())) as peer:
        with pytest.raises(OneboxConfigError, match="method="):
            client_of(peer.url).request(method, "ticketrz")
        assert peer.requests == []


@pytest.mark.parametrize("data", [io.BytesIO(b"a=1"), iter([b"a=1"]), io.StringIO("a=1")])
def test_body_that_can_be_sent_once(data):
    """A file or an iterator would be empty when it is sent again: it is refused, with the remedy."""
    with Peer(script(http_reply(429), http_reply())) as peer:
        with pytest.raises(OneboxConfigError, match="read it, and pass what it holds"):
            write(client_of(peer.url), data=data)
        assert peer.requests == []


def test_other_hosts_in_their_own_script(monkeypatch):
    """A host beyond ASCII can be logged in to and called."""
    with Peer(script(http_reply(200, {"ticketId": "5"}))) as proxy:
        client = client_of("http://münchen.example", token=None, proxies=(("http", proxy.url),))
        assert write(client) == {"ticketId": "5"}
        assert proxy.lines()[0] == "POST http://xn--mnchen-3ya.example/api/authenticate"


# Of urllib3's own module, in older versions.
@pytest.mark.filterwarnings("ignore:X509:DeprecationWarning")
def test_pyopenssl(tls, ca):
    """Where another library has put pyOpenSSL into urllib3, calls work, and their time is bounded."""
    pyopenssl = pytest.importorskip("urllib3.contrib.pyopenssl", reason="pyOpenSSL comes with the test dependencies")
    pyopenssl.inject_into_urllib3()
    try:
        with Peer(script(http_reply(200, {"ticketId": "5"})), tls) as peer:
            client = client_of(peer.url, verify=ca[1])
            assert write(client) == {"ticketId": "5"}
            assert write(client) == {"ticketId": "5"}
            with pytest.raises(OneboxConfigError, match="not trusted"):
                write(client_of(peer.url.replace("127.0.0.1", "localhost"), verify=ca[1]))
    finally:
        pyopenssl.extract_from_urllib3()


# Bounds


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_size_is_bounded(secure, packed, tls, ca, monkeypatch):
    """A body past the limit is cut off, over TLS and packed as well; a stream's 401 too."""
    monkeypatch.setattr("airflow_provider_onebox.api.client.MAX_JSON_BYTES", 2**20)
    monkeypatch.setattr(transport, "MAX_RESPONSE_BYTES", 2**20)
    body = b" " * 2**22
    replies = [
        http_reply(status, gzip.compress(body) if packed else body, *[b"Content-Encoding: gzip"] * packed)
        for status in (200, 401)
    ]
    with Peer(script(*replies), tls if secure else None) as peer:
        client = client_of(peer.url, verify=ca[1])
        with pytest.raises(
            OneboxResponseError, match=r"larger than 1 MiB\. Request fewer records per page\.$"
        ) as caught:
            client.request("GET", "ticketrz")
        assert (caught.value.status, caught.value.retryable) == (413, False)
        with pytest.raises(transport.ResponseTooLargeError):
            client.session.get(client.url_for("ticketrz"), stream=True)


@pytest.mark.parametrize("encoding", [b"gzip, gzip", b"br", b"zstd", b"x-gzip", b"gzip\r\nContent-Encoding: gzip"])
def test_packing_that_was_not_asked_for(encoding, monkeypatch):
    """A body that is packed twice, or in a way that was not asked for, is not unpacked at all; its connection ends."""
    # As where another package has taught requests to unpack more.
    monkeypatch.setattr("requests.utils.DEFAULT_ACCEPT_ENCODING", "gzip, deflate, br, zstd")
    body = gzip.compress(gzip.compress(b" " * 2**26))
    with Peer(script(http_reply(200, body, b"Content-Encoding: " + encoding))) as peer:
        with pytest.raises(OneboxUnavailableError, match="not one that was asked for"):
            client_of(peer.url, max_retries=0).request("GET", "ticketrz")
        assert b"Accept-Encoding: gzip, deflate\r\n" in peer.requests[0]
        response = client_of(peer.url).session.get(f"{peer.url}/api/x", stream=True)
        with pytest.raises(requests.exceptions.ContentDecodingError):
            transport.read_body(response)
        assert response.raw.closed


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: "])
def test_time_is_bounded(secure, head, tls, ca, monkeypatch):
    """A reply that drips is cut off on time, over TLS too, and the error tells the time that it really took."""
    monkeypatch.setattr(transport, "MAX_RESPONSE_TIMEOUTS", 3)

    def drip(peer, conn):
        peer.read(conn)
        conn.sendall(head)
        while not peer.over.wait(0.05):
            conn.sendall(b"x")

    with Peer(drip, tls if secure else None) as peer:
        client = client_of(peer.url, verify=ca[1], timeout=0.3, max_retries=0)
        start = time.monotonic()
        with pytest.raises(OneboxUnavailableError, match="is too slow: no complete response in") as caught:
            client.request("GET", "ticketrz")
        took = time.monotonic() - start
        assert 0.85 < took < 5
        told = float(re.search("in ([0-9.]+) s", str(caught.value))[1])
        # On a busy machine the call takes longer than its exchange, which is what is told.
        assert 0.85 < told < took + 0.1
        assert "'timeout' is 0.3 s" in str(caught.value)


def test_error_of_the_caller_is_not_quoted():
    """An error that the caller is just handling is not taken for the reason, whatever its class."""
    with Peer(cut) as peer:
        try:
            raise ConnectionResetError(104, "something of the caller's own")
        except OSError:
            with pytest.raises(OneboxUnavailableError, match="Remote end closed connection") as caught:
                client_of(peer.url, max_retries=0).request("GET", "ticketrz")
        assert "caller" not in str(caught.value)


class Silent:
    """A Onebox that takes `steps` requests and then says nothing."""

    def __init__(self, steps):
        self.steps = steps

    def __call__(self, peer, conn):
        while peer.read(conn):
            if len(peer.requests) > self.steps:
                peer.over.wait(20)
                return
            conn.sendall(http_reply(200, LOGIN))


@pytest.mark.parametrize(("steps", "error"), [(0, OneboxUnavailableError), (1, OneboxUncertainWriteError)])
def test_time_limit_of_a_silent_onebox(steps, error):
    """With a time limit, a login and a call together take no longer, with one try each."""
    with Peer(Silent(steps)) as peer:
        client = client_of(peer.url, token=None, time_limit=1)
        start = time.monotonic()
        with pytest.raises(error, match=r"no complete response in 0\.[45] s"):
            write(client)
        assert time.monotonic() - start < 1.5
        assert len(peer.requests) == steps + 1
        assert client.waits == []


def test_time_limit_of_a_dripping_onebox():
    """Nor does a reply that drips hold it longer; a write that was in flight is uncertain, a read is not."""

    def drip(peer, conn):
        peer.read(conn)
        while not peer.over.wait(0.05):
            conn.sendall(b"H")

    with Peer(drip) as peer:
        for method, error in (("POST", OneboxUncertainWriteError), ("GET", OneboxUnavailableError)):
            start = time.monotonic()
            with pytest.raises(error, match=r"within the 1\.5 s that the call may take"):
                client_of(peer.url, time_limit=1.5).request(method, "ticketrz")
            assert 1.4 < time.monotonic() - start < 3
        with pytest.raises(OneboxUnavailableError, match=r"within the 1\.5 s") as caught:
            client_of(peer.url, time_limit=1.5, token=None).login()
        assert caught.value.uncertain is False


def end_abandoned_calls():
    """Wait until calls that nobody waits for are over."""
    for thread in threading.enumerate():
        if thread.name == "onebox-call":
            assert thread.daemon, "it would keep the process from ending"
            thread.join(20)


def test_time_limit_of_a_name_that_is_not_found(monkeypatch):
    """Nor does a resolver that hangs; what was given up on before it began is not done later."""
    resolved, look_up = threading.Event(), socket.getaddrinfo

    def slow(host, *args, **kwargs):
        resolved.wait(20)
        return look_up("127.0.0.1", *args, **kwargs)

    with Peer(script(http_reply())) as peer:
        monkeypatch.setattr(socket, "getaddrinfo", slow)
        client = client_of(f"http://dev.example:{peer.port}", token=None, time_limit=0.3)
        with pytest.raises(OneboxUnavailableError, match=r"within the 0\.3 s") as caught:
            write(client)
        assert caught.value.uncertain is False
        resolved.set()
        end_abandoned_calls()
        assert set(peer.lines()) <= {"POST /api/authenticate"}


def test_time_limit_of_a_token_that_comes_too_late():
    """A call that was given up on while it waited for its token is not made once the token is there."""
    issued = threading.Event()

    def issue(rejected):
        assert issued.wait(20)
        return Token(TOKEN)

    with Peer(script(http_reply())) as peer:
        settings = Settings("crm", peer.url, "care@example.com", PASSWORD, "169")
        client = OneboxClient(settings, tokens=TokenSource(issue), time_limit=0.3)
        with pytest.raises(OneboxUnavailableError, match=r"within the 0\.3 s") as caught:
            write(client)
        assert caught.value.uncertain is False
        issued.set()
        end_abandoned_calls()
        assert client.tokens.current == Token(TOKEN)
        assert peer.lines() == []


def test_time_limit_keeps_answers_and_errors():
    """A call in time gives what it always gives; what nobody foresaw comes through."""
    with Peer(script(http_reply(), http_reply(404))) as peer:
        client = client_of(peer.url, time_limit=5)
        assert write(client) == {}
        with pytest.raises(OneboxRequestError, match="404"):
            write(client)
        with pytest.raises(OneboxConfigError, match="not a path"):
            client.request("GET", "//x")


# Tokens


def test_retries_send_the_renewed_token():
    """After a renewal every retry carries the new token, not the expired one first."""
    script_ = script(http_reply(401, EXPIRED), http_reply(503), http_reply(503), http_reply())
    with Peer(script_) as peer:
        assert client_of(peer.url).request("GET", "ticketrz") == {}
        assert peer.tokens() == [TOKEN, NEW_TOKEN, NEW_TOKEN, NEW_TOKEN]


def test_handed_in_token_that_is_rejected(caplog):
    """The log says once, at INFO, that a handed-in token was rejected and a login took its place."""
    with Peer(script(http_reply(401, EXPIRED), http_reply())) as peer, caplog.at_level(logging.INFO):
        client = client_of(peer.url)
        for _ in range(3):
            client.request("GET", "ticketrz")
        said = [record for record in caplog.records if "upstream token" in record.getMessage()]
        assert [record.levelname for record in said] == ["INFO"]
        assert "Connection 'crm', site 169" in said[0].getMessage()
        assert peer.connections == 1
        assert TOKEN not in caplog.text


def test_prepared_request_can_be_sent_again():
    """A request that a user has prepared once carries the token of the moment each time."""
    with Peer(script(http_reply(), http_reply(401, EXPIRED), http_reply())) as peer:
        session = client_of(peer.url).session
        prepared = session.prepare_request(requests.Request("GET", f"{peer.url}/api/x"))
        for _ in range(3):
            assert session.send(prepared).status_code == 200
        assert peer.tokens() == [TOKEN, TOKEN, NEW_TOKEN, NEW_TOKEN]
        assert prepared.headers["Authorization"] == "Bearer ***"


@pytest.mark.parametrize("stream", [False, True])
def test_user_sees_no_token(stream, capsys, monkeypatch):
    """Neither the request of a reply nor its history nor http.client's debug output shows token or password."""
    monkeypatch.setattr(http.client.HTTPConnection, "debuglevel", 1)
    transport._connection_class.cache_clear()  # as in a process in which it was set before the first call
    with Peer(script(http_reply(401, EXPIRED), http_reply())) as peer:
        response = client_of(peer.url).session.get(f"{peer.url}/api/x", stream=stream)
        response.close()
        assert peer.tokens() == [TOKEN, NEW_TOKEN]
        seen = [response, *response.history]
        assert [shown.request.headers["Authorization"] for shown in seen] == ["Bearer ***"] * 2
        print(*(dict(shown.request.headers) for shown in seen), vars(response.request))  # noqa: T201
        printed = capsys.readouterr().out
        assert "Bearer ***" in printed
        for secret in (TOKEN, NEW_TOKEN, PASSWORD, "p%40ss"):
            assert secret not in printed
        # Another connection of the same process still tells.
        requests.get(f"{peer.url}/api/authenticate", timeout=5)
        assert "send:" in capsys.readouterr().out


def test_users_request_without_a_token():
    """A user's own authorization is sent as it is, and nothing is renewed for it."""
    with Peer(script(http_reply(401))) as peer:
        session = client_of(peer.url).session
        assert session.get(f"{peer.url}/api/x", auth=("me", "mine")).status_code == 401
        assert b"Authorization: Basic bWU6bWluZQ==" in peer.requests[0]
        assert len(peer.requests) == 1


def test_users_stream_is_not_replayed():
    """A body that can be sent once is not sent again by the session; the 401 is the caller's."""
    with Peer(script(http_reply(401, EXPIRED))) as peer:
        session = client_of(peer.url).session
        assert session.post(f"{peer.url}/api/x", data=io.BytesIO(b"abc")).status_code == 401
        assert len(peer.requests) == 1


def rendered(error):
    """Render an error as Airflow's console does at its most talkative."""
    console = Console(file=io.StringIO(), width=4000, legacy_windows=False)
    console.print(
        Traceback.from_exception(type(error), error, error.__traceback__, show_locals=True, locals_max_string=None)
    )
    return console.file.getvalue()


def by_status(status, body=b""):
    """Answer everything with a status, logins included."""

    def answer(peer, conn):
        while peer.read(conn):
            conn.sendall(http_reply(status, body))

    return answer


def locked_out(peer, conn):
    """Answer the first login, expire its token, and reject the next login."""
    while peer.read(conn):
        logins = sum(b"/api/authenticate" in request for request in peer.requests)
        is_first = logins == len(peer.requests) == 1
        conn.sendall(http_reply(200, LOGIN) if is_first else http_reply(401, EXPIRED))


def hung(peer, conn):
    """Answer a login, then nothing."""
    Silent(1)(peer, conn)


@pytest.mark.parametrize(
    "answer",
    [
        by_status(401, {"error": "wrong password"}),
        by_status(401, EXPIRED),
        by_status(200, {"token": "a b " + NEW_TOKEN}),
        by_status(200, {"response_code": "401", "token": NEW_TOKEN}),
        by_status(200, b'{"token": "' + NEW_TOKEN.encode()),
        script(http_reply(401, EXPIRED)),
        script(http_reply(500)),
        script(http_reply(200, b"<html>")),
        script(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}"),
        script(http_reply(200, b" " * 2**21)),
        locked_out,
        hung,
        cut,
        hang_up,
    ],
)
@pytest.mark.parametrize(("method", "time_limit"), [("GET", None), ("POST", 1)])
def test_traceback_holds_no_secret(answer, method, time_limit, monkeypatch):
    """A traceback with all its locals shows neither token nor password, whatever went wrong."""
    monkeypatch.setattr("airflow_provider_onebox.api.client.MAX_JSON_BYTES", 2**20)
    with Peer(answer) as peer:
        proxied = client_of(
            "http://dev.example",
            token=None,
            timeout=0.3,
            max_retries=0,
            proxies=(("http", peer.url.replace("//", "//me:proxypass@")),),
            time_limit=time_limit,
        )
        with pytest.raises(OneboxError) as caught:
            proxied.request(method, "ticketrz", json={"subject": "s"})
    error = caught.value
    text = rendered(error)
    assert "locals" in text
    for secret in (NEW_TOKEN, NEW_TOKEN[:12], PASSWORD, "p%40ss", "proxypass", "bWU6cHJveHlwYXNz"):
        assert secret not in text
    frames = {frame.f_code.co_filename for frame, _ in walk_tb(error.__traceback__)}
    assert not any("requests" in name or "urllib3" in name or "http/client" in name for name in frames)
    assert error.__context__ is None
    assert error.__cause__ is None


def test_broken_call_of_a_user_holds_no_token():
    """The session's own errors, with the frames of the libraries, show no token either."""
    with Peer(lambda peer, conn: peer.over.wait(20)) as peer:
        session = client_of(peer.url, timeout=0.2).session
        # Whatever part of the request does not get through, the head or the body. The first header stands first.
        big = "x" * 2**23
        for arguments in ({"headers": {"Authorization": "", "X": big}}, {"data": big}):
            with pytest.raises(requests.ConnectionError) as caught:
                session.post(f"{peer.url}/api/x", **arguments)
            texts, error = [], caught.value
            while error:
                for frame, _ in walk_tb(error.__traceback__):
                    for value in frame.f_locals.values():
                        texts += value.values() if isinstance(value, dict) else [value]
                error = error.__context__
            texts = [text.decode("latin-1") if isinstance(text, bytes) else text for text in texts]
            texts = [text for text in texts if isinstance(text, str)]
            assert "Bearer ***" in texts
            assert not any(TOKEN in text for text in texts)
            assert caught.value.request.headers["Authorization"] == "Bearer ***"


def test_clients_share_connections():
    """A client with a handed-in token opens no pool of its own."""
    with Peer(script(http_reply())) as peer:
        client = client_of(peer.url, token=None)
        client.request("GET", "ticketrz")
        client.with_token(Token(TOKEN)).request("GET", "ticketrz")
        assert peer.tokens() == [NEW_TOKEN, TOKEN]
        assert peer.connections == 1


def test_fork_has_connections_of_its_own():
    """A child never speaks on its parent's connections, not even through a session that was made before."""
    with Peer(script(http_reply())) as peer:
        client = client_of(peer.url)
        session = client.session
        assert session.get(f"{peer.url}/api/x").status_code == 200
        child = os.fork()
        if child == 0:
            right = client.request("GET", "ticketrz") == {} and session.get(f"{peer.url}/api/x").status_code == 200
            os._exit(0 if right and client.session is not session else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert peer.connections == 2
        assert client.request("GET", "ticketrz") == {}
        assert client.session is session
        assert peer.connections == 2


def test_threads_know_their_own_requests():
    """What is known of a request is that thread's: a write that never left is not taken for one that did."""
    with Peer(cut) as peer:
        sent, unsent = client_of(peer.url, max_retries=0), client_of(f"http://127.0.0.1:{closed_port()}", max_retries=0)

        def error_of(client):
            with pytest.raises(OneboxError) as caught:
                write(client)
            return type(caught.value)

        with ThreadPoolExecutor(8) as pool:
            kinds = list(pool.map(error_of, [sent, unsent] * 40))
    assert kinds == [OneboxUncertainWriteError, OneboxUnavailableError] * 40
