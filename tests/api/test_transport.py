"""The session against hostile peers: bounded in time and memory, deaf to redirects, bound to one host."""

from __future__ import annotations

import contextlib
import gzip
import socket
import threading
import time
import zlib
from types import SimpleNamespace

import pytest
import requests

from airflow_provider_onebox.api import transport
from airflow_provider_onebox.api.auth import OneboxSession
from airflow_provider_onebox.api.settings import Settings
from airflow_provider_onebox.api.transport import (
    ResponseTooLargeError,
    _TimedSocketReader,
    read_body,
)


@contextlib.contextmanager
def server(answer):
    """A raw server on loopback that gives each connection to `answer`; yields its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def serve():
            while True:
                try:
                    conn, _ = listener.accept()
                except OSError:
                    return
                with conn:
                    conn.recv(65536)
                    # The client hangs up early, which is what most tests want.
                    with contextlib.suppress(OSError):
                        answer(conn)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
            thread.join()


def make(url, **options):
    """A session for one connection."""
    return OneboxSession(Settings("crm", url, "e", "p", "1", **options))


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"


def test_body_comes_whole():
    """A reply in pieces, compressed or not, is put together; the connection's time-out is the default."""
    with server(lambda conn: (conn.sendall(HEAD % 4 + b"ab"), time.sleep(0.05), conn.sendall(b"cd"))) as url:
        assert make(url).get(url).content == b"abcd"
        with make(url).get(url, stream=True) as response:
            assert response.raw.read() == b"abcd"


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [("", bytes), ("identity", bytes), ("gzip", gzip.compress), (" Deflate", zlib.compress)],
)
def test_packed_body(encoding, pack):
    """A body that is packed in a way that was asked for comes unpacked, however the way is spelt."""
    body = pack(b"abcd")
    head = (HEAD % len(body)).replace(b"\r\n\r\n", b"\r\nContent-Encoding: %s\r\n\r\n" % encoding.encode())
    with server(lambda conn: conn.sendall(head + body)) as url:
        assert make(url).get(url).content == b"abcd"


@pytest.mark.parametrize("chunked", [True, False])
def test_endless_body_is_cut_off(chunked, monkeypatch):
    """A body larger than the limit is not read to its end."""
    monkeypatch.setattr(transport, "MAX_RESPONSE_BYTES", 2**20)
    piece = b"x" * 65536

    def answer(conn):
        if chunked:
            conn.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            while True:
                conn.sendall(b"10000\r\n" + piece + b"\r\n")
        conn.sendall(HEAD % 2**31)
        while True:
            conn.sendall(piece)

    with server(answer) as url:
        with pytest.raises(ResponseTooLargeError, match="larger than 1 MiB") as caught:
            make(url).get(url + "/x?secret=1")
        # Whoever keeps the error keeps no connection.
        is_closed = caught.value.response.raw.closed
        caught.value.response.close()
    assert is_closed


def test_body_of_just_the_limit():
    """A body as large as the limit comes whole; one byte more is too large."""
    with server(lambda conn: conn.sendall(HEAD % 4 + b"abcd")) as url:
        assert read_body(make(url).get(url, stream=True), 4) == b"abcd"
        with pytest.raises(ResponseTooLargeError):
            read_body(make(url).get(url, stream=True), 3)


def drip(conn, piece, pause):
    """Send a piece again and again."""
    while True:
        conn.sendall(piece)
        time.sleep(pause)


@pytest.mark.parametrize(
    "head",
    [HEAD % 10**6, b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffff\r\n"],
)
def test_dripping_reply_is_cut_off(head, monkeypatch):
    """A server that sends a byte now and then holds nobody longer than a reply may take."""
    monkeypatch.setattr(transport, "MAX_RESPONSE_TIMEOUTS", 2)

    def answer(conn):
        conn.sendall(head)
        drip(conn, b"x", 0.05)

    with server(answer) as url:
        start = time.monotonic()
        with pytest.raises(requests.RequestException):
            make(url, timeout=0.5).get(url)
        assert 0.9 < time.monotonic() - start < 10


def test_time_of_a_reply_is_up(monkeypatch):
    """A reply may take ten timeouts: a read waits for what is left, and then not even for a byte that lies ready."""
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(transport, "time", clock)
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
    with server(lambda conn: conn.sendall(HEAD % 2 + b"ok")) as url:
        assert make(url).get(url, timeout=(1, None)).text == "ok"


def test_silent_server_times_out():
    """A server that says nothing is left after the time-out."""
    with server(lambda conn: time.sleep(0.5)) as url:
        with pytest.raises(requests.ReadTimeout):
            make(url, timeout=0.1).get(url)
        with pytest.raises(requests.ReadTimeout):
            make(url).get(url, timeout=0.1)


@pytest.mark.parametrize("bomb", [b"X-%d: y\r\n", b"X%d: " + b"y" * 200 + b"\r\n"])
def test_header_bomb_is_cut_off(bomb):
    """Headers without end are refused."""

    def answer(conn):
        conn.sendall(b"HTTP/1.1 200 OK\r\n")
        n = 0
        while True:
            n += 1
            conn.sendall(bomb % n)

    with server(answer) as url, pytest.raises(requests.ConnectionError):
        make(url).get(url)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(status):
    """Whatever the caller asks for, a redirect comes back as it is."""
    other = []
    with server(lambda conn: other.append(conn)) as elsewhere:
        location = b"HTTP/1.1 %d Moved\r\nLocation: %s/x\r\nContent-Length: 0\r\n\r\n" % (status, elsewhere.encode())
        with server(lambda conn: conn.sendall(location)) as url:
            for method in ("GET", "POST"):
                assert make(url).request(method, url, allow_redirects=True).status_code == status
    assert other == []


def test_cookies_are_not_kept():
    """A session id that Onebox sets does not come back to it."""
    answer = b"HTTP/1.1 200 OK\r\nSet-Cookie: PHPSESSID=1; Path=/\r\nContent-Length: 0\r\n\r\n"
    with server(lambda conn: conn.sendall(answer)) as url:
        session = make(url)
        assert session.get(url).headers["Set-Cookie"]
        assert not session.cookies


def test_environment_proxy_and_plain_http(monkeypatch):
    """A proxy from the environment never carries the password of a plain-HTTP connection."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    with server(lambda conn: conn.sendall(HEAD % 0)) as url:
        assert make(url).get(url).status_code == 200
    assert make("https://dev.example").trust_env is True


def test_proxy_of_the_connection(monkeypatch):
    """The connection's own proxy is used, for plain HTTP too, and its replies are as bounded."""
    monkeypatch.setattr(transport, "MAX_RESPONSE_TIMEOUTS", 2)
    with server(lambda conn: drip(conn, b"H", 0.05)) as proxy:
        start = time.monotonic()
        with pytest.raises(requests.RequestException):
            make("http://127.0.0.1:1", timeout=0.5, proxies=(("http", proxy),)).get("http://127.0.0.1:1/x")
        assert 0.9 < time.monotonic() - start < 10


@pytest.mark.parametrize(("verify", "expected"), [(True, "/env.pem"), (False, False), ("/ca.pem", "/ca.pem")])
def test_verify_of_the_connection_wins(verify, expected, monkeypatch):
    """An explicit setting is stronger than REQUESTS_CA_BUNDLE, which requests would prefer."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/env.pem")
    seen = {}

    class Adapter(requests.adapters.BaseAdapter):
        def send(self, request, **kwargs):
            seen.update(kwargs)
            response = requests.Response()
            response.status_code, response._content, response.url = 200, b"", request.url
            return response

        def close(self):
            pass

    session = make("https://dev.example", verify=verify, timeout=7)
    session.mount("https://", Adapter())
    session.get("https://dev.example/")
    assert seen["verify"] == expected
    assert seen["timeout"] == 7
