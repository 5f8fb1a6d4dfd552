"""The session against hostile peers: bounded in time and memory; proxies, TLS, and what is known of a request."""

from __future__ import annotations

import gzip
import os
import re
import socket
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import requests
import requests_mock as rm
from support.compliance import held_by
from support.wire import (
    NEW_TOKEN,
    PATIENCE,
    TOKEN,
    Peer,
    Silent,
    client_of,
    closed_port,
    cut,
    hang_up,
    http_response,
    read,
    script,
    write,
)

from airflow_provider_onebox.api import transport
from airflow_provider_onebox.api.auth import OneboxSession
from airflow_provider_onebox.api.settings import Settings
from airflow_provider_onebox.api.token import Token
from airflow_provider_onebox.api.transport import (
    AbandonedError,
    Attempt,
    OneboxAdapter,
    ResponseTooLargeError,
    _TimedSocketReader,
    read_body,
)
from airflow_provider_onebox.exceptions import (
    OneboxConfigError,
    OneboxError,
    OneboxResponseError,
    OneboxUnavailableError,
    OneboxUncertainWriteError,
    OneboxUnusableResultError,
)


@pytest.fixture(autouse=True)
def _machine_may_be_slow(monkeypatch):
    """Let no connection be too old for the next write, however long a test takes."""
    monkeypatch.setattr(transport, "MAX_IDLE_BEFORE_WRITE", PATIENCE)


def make(url, **options):
    """A session for one connection."""
    return OneboxSession(Settings("crm", url, "e", "p", "1", **options))


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"


def test_body_in_pieces():
    """A response in pieces is put together, and may be streamed."""

    def respond(peer, conn):
        while peer.read(conn):
            conn.sendall(HEAD % 4 + b"ab")
            time.sleep(0.05)
            conn.sendall(b"cd")

    with Peer(respond) as peer:
        assert make(peer.url).get(peer.url).content == b"abcd"
        with make(peer.url).get(peer.url, stream=True) as response:
            assert response.raw.read() == b"abcd"


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [(b"", bytes), (b"identity", bytes), (b"gzip", gzip.compress), (b" Deflate", zlib.compress)],
)
def test_packed_body(encoding, pack):
    """A body that is packed in a way that was asked for is unpacked, however the way is spelt."""
    with Peer(script(http_response(200, pack(b"abcd"), b"Content-Encoding: " + encoding))) as peer:
        assert make(peer.url).get(peer.url).content == b"abcd"


def test_body_of_just_the_limit():
    """A body as large as the limit is read whole; one byte more is too large, and its connection ends."""
    with Peer(script(http_response(200, b"abcd"))) as peer:
        assert read_body(make(peer.url).get(peer.url, stream=True), 4) == b"abcd"
        with pytest.raises(ResponseTooLargeError) as caught:
            read_body(make(peer.url).get(peer.url, stream=True), 3)
        assert caught.value.response.raw.closed


@pytest.fixture
def clock(monkeypatch):
    """The clock of a response, set by the test."""
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(transport, "time", clock)
    monkeypatch.setattr("airflow_provider_onebox.api.response.time", clock)
    return clock


def test_time_of_a_response_is_up(clock):
    """A response may take ten timeouts: a read waits for what is left, and then not even for a byte that is ready."""
    here, there = socket.socketpair()
    with here, there:
        here.settimeout(60)
        with _TimedSocketReader(here) as reader:
            for clock.now, wait in ((100, 60), (599, 1)):
                there.sendall(b"x")
                assert reader.read(1) == b"x"
                assert here.gettimeout() == wait
            clock.now = 600
            there.sendall(b"x")
            with pytest.raises(TimeoutError, match="the whole response took too long"):
                reader.read(1)
        assert reader.closed


def test_no_limit_for_a_read():
    """A caller of the session may wait for a read without end, as with requests."""
    with Peer(script(http_response(200, b"ok"))) as peer:
        assert make(peer.url).get(peer.url, timeout=(1, None)).text == "ok"


def test_silent_server_times_out():
    """A request may have a shorter timeout than its connection."""
    with Peer(Silent(0)) as peer, pytest.raises(requests.ReadTimeout):
        make(peer.url, timeout=PATIENCE).get(peer.url, timeout=0.1)


def test_cookies_are_not_kept():
    """A session id that Onebox sets is not sent back."""
    with Peer(script(http_response(200, b"", b"Set-Cookie: PHPSESSID=1; Path=/"))) as peer:
        session = make(peer.url)
        assert session.get(peer.url).headers["Set-Cookie"]
        assert not session.cookies


def test_environment_proxy_and_plain_http(monkeypatch):
    """A proxy from the environment never carries the password of a plain-HTTP connection."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    with Peer(script(http_response())) as peer:
        assert make(peer.url).get(peer.url).status_code == 200
    assert make("https://dev.example").trust_env is True


@pytest.mark.parametrize(("verify", "expected"), [(True, "/env.pem"), (False, False), ("/ca.pem", "/ca.pem")])
def test_verify_of_the_connection_wins(verify, expected, monkeypatch):
    """An explicit setting is stronger than REQUESTS_CA_BUNDLE, which requests would prefer."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/env.pem")
    with rm.Mocker() as mock:
        mock.get("https://dev.example/")
        make("https://dev.example", verify=verify, timeout=7).get("https://dev.example/")
    assert (mock.last_request.verify, mock.last_request.timeout) == (expected, 7)


def refusing_proxy(status=b"503 No way"):
    """Reject every CONNECT."""

    def respond(peer, conn):
        if peer.read(conn):
            conn.sendall(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n")

    return Peer(respond)


def is_not_sent(client, error, message):
    """Make a write that is not sent: its error says so, and shows no password of a proxy."""
    with pytest.raises(error, match=message) as caught:
        write(client)
    assert caught.value.uncertain is False
    assert "proxypass" not in held_by(caught.value)


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
        # NO_PROXY concerns the environment's proxies alone.
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
    """A connection without a proxy takes the environment's, and none for a host in NO_PROXY."""
    monkeypatch.delenv("NO_PROXY", raising=False)
    with refusing_proxy() as proxy, Peer(script(http_response()), tls) as onebox:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url.replace("//", "//me:proxypass@"))
        client = client_of(onebox.url, verify=ca[1], max_retries=0)
        is_not_sent(client, OneboxUnavailableError, f"the proxy {proxy.url} can't be reached")
        assert onebox.requests == []
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        assert write(client) == {}
        assert len(proxy.requests) == 1


@pytest.mark.parametrize("scheme", ["https", "http"])
def test_unreachable_proxy_is_named(scheme):
    """The error says that the proxy can't be reached, and not Onebox."""
    address = f"127.0.0.1:{closed_port()}"
    client = client_of(f"{scheme}://dev.example", proxies=((scheme, f"http://me:proxypass@{address}"),))
    message = rf"the proxy http://{address} can't be reached: Connection refused\. That was try 4 of 4\.$"
    is_not_sent(client, OneboxUnavailableError, message)
    assert len(client.waits) == 3


@pytest.mark.parametrize(
    ("status", "error", "message", "tries"),
    [
        (b"407 Proxy Authentication Required", OneboxConfigError, "rejected its user or password.*407", 1),
        (b"403 Forbidden", OneboxConfigError, "rejected the way to Onebox.*403", 1),
        (b"503 Busy", OneboxUnavailableError, "can't be reached.*503", 4),
        (b"429 Slow down", OneboxUnavailableError, "can't be reached.*429", 4),
        (b"408 Timeout", OneboxUnavailableError, "can't be reached.*408", 4),
        (b"500 Oops", OneboxUnavailableError, "can't be reached.*500", 4),
    ],
)
def test_proxy_that_refuses(status, error, message, tries):
    """A proxy that rejects the password or the host is not asked again, and one that is busy is."""
    with refusing_proxy(status) as proxy:
        client = client_of("https://dev.example", proxies=(("https", proxy.url.replace("//", "//me:proxypass@")),))
        is_not_sent(client, error, f"the proxy {proxy.url} {message}")
        assert len(proxy.requests) == tries


@pytest.mark.parametrize(("call", "error"), [(write, OneboxUncertainWriteError), (read, OneboxUnusableResultError)])
def test_407_of_a_forwarding_proxy(call, error):
    """A proxy that passes plain HTTP on has got the request: its 407 is no error of the settings alone."""
    with Peer(script(http_response(407, b"<html>"))) as proxy:
        client = client_of("http://dev.example", proxies=(("http", proxy.url.replace("//", "//me:proxypass@")),))
        message = rf"the proxy {proxy.url} rejected its user or password \(407\)"
        with pytest.raises(error, match=message) as caught:
            call(client)
        assert (caught.value.uncertain, caught.value.retryable, caught.value.status) == (True, False, 407)
        shown = held_by(caught.value)
        assert not [secret for secret in ("proxypass", "bWU6cHJveHlwYXNz") if secret in shown]
        assert len(proxy.requests) == 1


def socks(peer, conn):
    """Speak SOCKS5 as a server that itself responds to what is sent through it."""
    conn.recv(3)
    conn.sendall(b"\x05\x00")
    conn.recv(262)
    conn.sendall(b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00")
    script(http_response(200, {"ticketId": "5"}))(peer, conn)


def test_socks_proxy():
    """SOCKS proxies work; one that can't be reached is named."""
    with Peer(socks) as proxy:
        address = proxy.url.replace("http", "socks5h")
        client = client_of("http://dev.example", proxies=(("http", address),))
        assert write(client) == write(client) == {"ticketId": "5"}
        assert (proxy.lines(), proxy.connections) == (["POST /api/ticket/create"] * 2, 1)
    is_not_sent(client, OneboxUnavailableError, re.escape(f"(through the proxy {address})"))


def test_socks_proxy_without_its_package(monkeypatch):
    """If PySocks is not installed, the error says how to install it."""

    def missing(*args, **kwargs):
        raise requests.exceptions.InvalidSchema("Missing dependencies for SOCKS support.")

    monkeypatch.setattr("requests.adapters.SOCKSProxyManager", missing)
    client = client_of("http://dev.example", proxies=(("http", "socks5h://127.0.0.1:1"),))
    is_not_sent(client, OneboxConfigError, re.escape("pip install 'requests[socks]'"))


@pytest.mark.parametrize(
    ("respond", "timeout", "message"),
    [
        (hang_up, 5, ""),
        (Silent(0), 0.05, r"no complete response in [0-9.]+ s .*'timeout' is 0\.05 s"),
    ],
)
def test_write_that_met_a_bad_handshake(respond, timeout, message):
    """A TLS handshake that fails, for any reason but a certificate, is tried again: the write was not sent."""
    with Peer(respond) as peer:
        client = client_of(f"https://127.0.0.1:{peer.port}", timeout=timeout)
        is_not_sent(client, OneboxUnavailableError, f"can't be reached: {message}")
        assert peer.connections == 4


@pytest.mark.parametrize("is_proxy", [False, True])
def test_plain_http_where_tls_is_expected(is_proxy):
    """An https URL whose port speaks plain HTTP is an error of the settings, not asked again, also a proxy's."""
    with Peer(lambda peer, conn: (conn.recv(100), conn.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n"))) as peer:
        address = f"https://127.0.0.1:{peer.port}"
        client = client_of("https://dev.example", proxies=(("https", address),)) if is_proxy else client_of(address)
        is_not_sent(client, OneboxConfigError, f"{'the proxy ' * is_proxy}{address} speaks no TLS on this port")
        assert peer.connections == 1


def test_write_to_an_untrusted_certificate(tls):
    """An untrusted certificate is named with the field that helps, once, and so is a CA file that does not exist."""
    with Peer(script(http_response()), tls) as peer:
        is_not_sent(client_of(peer.url), OneboxConfigError, r"not trusted.*'verify'")
        assert (peer.requests, peer.connections) == ([], 1)
        client = client_of(peer.url, verify="/gone.pem")
        is_not_sent(client, OneboxConfigError, r"can't be sent: .*gone\.pem.*'verify'")


def test_adapter_by_itself(tls):
    """An adapter that is used without its session checks certificates and reads the response, too."""
    with Peer(script(http_response()), tls) as peer:
        with pytest.raises(requests.exceptions.SSLError):
            OneboxAdapter().send(requests.Request("GET", peer.url).prepare())
        assert peer.requests == []
    with Peer(script(http_response(200, {"count": 1}))) as peer:
        response = OneboxAdapter().send(requests.Request("GET", peer.url).prepare())
        assert response.raw.read() == b""
        assert response.json() == {"count": 1}


def test_write_that_was_sent_over_tls(tls, ca):
    """A write that was sent over TLS and has no response is uncertain, and is sent once."""
    with Peer(cut, tls) as peer:
        with pytest.raises(OneboxUncertainWriteError):
            write(client_of(peer.url, verify=ca[1]))
        assert len(peer.requests) == 1


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS"])
def test_read_that_was_sent(method):
    """These methods change nothing, so they are sent again, and are never uncertain."""
    with Peer(cut) as peer:
        with pytest.raises(OneboxUnavailableError):
            client_of(peer.url, max_retries=1).request(method, "ticketrz")
        assert len(peer.requests) == 2


def test_writes_avoid_old_connections(monkeypatch):
    """A write goes out on a new connection where the old one has idled; reads and quick writes share one."""
    with Peer(script(http_response())) as peer:
        client = client_of(peer.url)
        for _ in range(5):
            write(client)
        assert peer.connections == 1
        monkeypatch.setattr(transport, "MAX_IDLE_BEFORE_WRITE", 0)
        read(client)
        assert peer.connections == 1
        write(client)
        assert peer.connections == 2


def test_writes_through_a_tunnel_avoid_old_connections(monkeypatch, tls, ca):
    """A connection that is made anew goes through the proxy again."""
    monkeypatch.setattr(transport, "MAX_IDLE_BEFORE_WRITE", 0)

    def tunnel(peer, conn):
        if peer.read(conn):
            conn.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            with peer.wrap(tls, conn) as inner:
                script(http_response())(peer, inner)

    with Peer(tunnel) as proxy:
        client = client_of("https://dev.example", verify=ca[1], proxies=(("https", proxy.url),))
        for _ in range(2):
            write(client)
        assert proxy.lines() == ["CONNECT dev.example:443", "POST /api/ticket/create"] * 2


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n{}\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\nSet-Cookie: \xff=\x00; expires=never\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"nonsense\r\n\r\n",
    ],
)
def test_response_that_breaks_the_library(raw):
    """Whatever the libraries raise, a write that was sent is uncertain, and is not sent again."""

    def respond(peer, conn):
        if peer.read(conn):
            conn.sendall(raw)

    with Peer(respond) as peer:
        with pytest.raises(OneboxUncertainWriteError):
            write(client_of(peer.url))
        assert len(peer.requests) == 1
        with pytest.raises((OneboxUnavailableError, OneboxResponseError)):
            read(client_of(peer.url, max_retries=0))


@pytest.mark.parametrize("status", [102, 103])
def test_interim_responses_are_skipped(status):
    """Early hints are not the response; the same connection serves on."""
    early = b"HTTP/1.1 100 Continue\r\n\r\n" + b"HTTP/1.1 %d Hints\r\nLink: </x>\r\n\r\n" % status * 2
    with Peer(script(early + http_response(200, {"ticketId": "5"}))) as peer:
        client = client_of(peer.url)
        assert write(client) == write(client) == {"ticketId": "5"}
        assert peer.connections == 1


def test_switch_of_protocols():
    """101 is no interim response: nothing else follows, so it is not waited for."""
    with Peer(script(http_response(101, b""))) as peer, pytest.raises(OneboxResponseError, match="101"):
        read(client_of(peer.url, max_retries=0))


def test_other_hosts_in_their_own_script(monkeypatch):
    """A host beyond ASCII can be logged in to and called."""
    with Peer(script(http_response(200, {"ticketId": "5"}))) as proxy:
        client = client_of("http://münchen.example", token=None, proxies=(("http", proxy.url),))
        assert write(client) == {"ticketId": "5"}
        assert proxy.lines()[0] == "POST http://xn--mnchen-3ya.example/api/authenticate"


# Of urllib3's own module, in older versions.
@pytest.mark.filterwarnings("ignore:X509:DeprecationWarning")
def test_pyopenssl(tls, ca):
    """Where another library has put pyOpenSSL into urllib3, calls work, and their time is bounded."""
    pyopenssl = pytest.importorskip("urllib3.contrib.pyopenssl", reason="pyOpenSSL is one of the test dependencies")
    pyopenssl.inject_into_urllib3()
    try:
        with Peer(script(http_response(200, {"ticketId": "5"})), tls) as peer:
            client = client_of(peer.url, verify=ca[1])
            assert write(client) == {"ticketId": "5"}
            assert write(client) == {"ticketId": "5"}
            with pytest.raises(OneboxConfigError, match="not trusted"):
                write(client_of(peer.url.replace("127.0.0.1", "localhost"), verify=ca[1]))
    finally:
        pyopenssl.extract_from_urllib3()


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_size_is_bounded(secure, packed, tls, ca, monkeypatch):
    """A body past the limit is cut off, over TLS and packed as well; a stream's 401 too."""
    monkeypatch.setattr("airflow_provider_onebox.api.client.MAX_JSON_BYTES", 2**20)
    monkeypatch.setattr(transport, "MAX_RESPONSE_BYTES", 2**20)
    body = gzip.compress(b" " * 2**21) if packed else b" " * 2**21
    large = [http_response(status, body, *[b"Content-Encoding: gzip"] * packed) for status in (200, 200, 401)]
    with Peer(script(*large), tls if secure else None) as peer:
        client = client_of(peer.url, verify=ca[1])
        message = r"larger than 1 MiB\. Request fewer records per page\."
        with pytest.raises(OneboxResponseError, match=f"{message}$") as caught:
            read(client)
        assert (caught.value.status, caught.value.retryable) == (413, False)
        with pytest.raises(OneboxUncertainWriteError, match=message):
            write(client)
        with pytest.raises(transport.ResponseTooLargeError):
            client.session.get(client.url_for("ticketrz"), stream=True)


@pytest.mark.parametrize("encoding", [b"gzip, gzip", b"br", b"zstd", b"x-gzip", b"gzip\r\nContent-Encoding: gzip"])
def test_packing_that_was_not_asked_for(encoding, monkeypatch):
    """A body that is packed twice, or in a way that was not asked for, is not unpacked at all; its connection ends."""
    # As where another package has taught requests to unpack more.
    monkeypatch.setattr("requests.utils.DEFAULT_ACCEPT_ENCODING", "gzip, deflate, br, zstd")
    body = gzip.compress(gzip.compress(b"{}"))
    with Peer(script(http_response(200, body, b"Content-Encoding: " + encoding))) as peer:
        with pytest.raises(OneboxUnavailableError, match="not one that was asked for"):
            read(client_of(peer.url, max_retries=0))
        assert b"Accept-Encoding: gzip, deflate\r\n" in peer.requests[0]
        response = client_of(peer.url).session.get(f"{peer.url}/api/x", stream=True)
        with pytest.raises(requests.exceptions.ContentDecodingError):
            read_body(response)
        assert response.raw.closed


@pytest.mark.parametrize("way", ["plain", "TLS", "proxy"])
@pytest.mark.parametrize(
    "head",
    [HEAD % 999, b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffff\r\n"],
)
def test_time_is_bounded(way, head, tls, ca, clock):
    """A response that drips is cut off on time, through TLS and proxies too; the error says how long it took."""

    def drip(peer, conn):
        peer.read(conn)
        conn.sendall(head)
        while not peer.over.wait(0.01):
            clock.now += 5
            conn.sendall(b"x")

    with Peer(drip, tls if way == "TLS" else None) as peer:
        proxies = (("http", peer.url),) if way == "proxy" else ()
        url = "http://dev.example" if way == "proxy" else peer.url
        client = client_of(url, verify=ca[1], proxies=proxies, max_retries=0)
        with pytest.raises(OneboxUnavailableError, match="is too slow: no complete response in") as caught:
            read(client)
    assert 50 <= float(re.search(r"in ([0-9.]+) s \(.*'timeout' is 5 s", str(caught.value))[1]) <= clock.now


def test_clients_share_connections():
    """A client with an upstream token opens no separate pool."""
    with Peer(script(http_response())) as peer:
        client = client_of(peer.url, token=None)
        read(client)
        read(client.with_token(Token(TOKEN)))
        assert peer.tokens() == [NEW_TOKEN, TOKEN]
        assert peer.connections == 1


def test_fork_has_separate_connections():
    """A child never speaks on its parent's connections, not even through a session that was made before."""
    with Peer(script(http_response())) as peer:
        client = client_of(peer.url)
        session = client.session
        assert session.get(f"{peer.url}/api/x").status_code == 200
        child = os.fork()
        if child == 0:
            right = read(client) == {} and session.get(f"{peer.url}/api/x").status_code == 200
            os._exit(0 if right and client.session is not session else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert peer.connections == 2
        assert read(client) == {}
        assert client.session is session
        assert peer.connections == 2


def test_threads_know_their_own_requests():
    """What is known of a request is that thread's: a write that was not sent is not taken for one that was."""
    with Peer(cut) as peer:
        sent, unsent = client_of(peer.url, max_retries=0), client_of(f"http://127.0.0.1:{closed_port()}", max_retries=0)

        def error_of(client):
            with pytest.raises(OneboxError) as caught:
                write(client)
            return type(caught.value)

        with ThreadPoolExecutor(8) as pool:
            kinds = list(pool.map(error_of, [sent, unsent] * 40))
    assert kinds == [OneboxUncertainWriteError, OneboxUnavailableError] * 40


def test_request_that_nobody_waits_for():
    """It is not sent, and whoever abandoned it can rely on that."""
    attempt = Attempt()
    assert not attempt.is_sent
    attempt.abandoned.set()
    with pytest.raises(AbandonedError):
        attempt.begin()
    assert not attempt.is_sent
