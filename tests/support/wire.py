"""Servers on loopback that behave as a test says, to the byte, and clients of them."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading

from airflow_provider_onebox.api.client import OneboxClient
from airflow_provider_onebox.api.settings import Settings
from airflow_provider_onebox.api.token import Token

TOKEN = "opaque-token-0123456789"
NEW_TOKEN = "opaque-token-9876543210"
PASSWORD = "p@ss w/rd&100%"
EXPIRED = {"_meta": {"status": "ERROR"}, "records": {"errorCode": 401, "userMessage": "Expired token"}}
PATIENCE = 60  # seconds; nothing takes as long, on a slow machine either


def http_response(status=200, body=b"{}", *headers):
    """Put a response together."""
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [b"HTTP/1.1 %d X" % status, b"Content-Length: %d" % len(body), *headers, b"", b""]
    return b"\r\n".join(lines) + body


def login_response(token=NEW_TOKEN):
    """Issue a token."""
    return http_response(200, {"response_code": "200", "response_status": "Success", "token": token})


class Peer:
    """A server on loopback that gives each connection to ``respond`` in a separate thread."""

    def __init__(self, respond, context=None):
        self.respond, self.context = respond, context
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
            raw.settimeout(PATIENCE)
            if self.context:
                with self.wrap(self.context, raw) as conn:
                    self.respond(self, conn)
            else:
                self.respond(self, raw)

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
            more = conn.recv(65536)
            if not more:
                return None
            body += more
        self.requests.append(head + b"\r\n\r\n" + body)
        return self.requests[-1]

    def count(self):
        """Count the logins and the other requests."""
        logins = self.lines().count("POST /api/authenticate")
        return logins, len(self.requests) - logins

    def lines(self):
        """List the first lines of the requests."""
        return [request.split(b" HTTP/")[0].decode() for request in self.requests]

    def tokens(self):
        """List the tokens that requests carried, those of logins left out."""
        return [
            found[1].decode()
            for found in (re.search(rb"Authorization: Bearer (\S+)", r) for r in self.requests)
            if found
        ]


def script(*responses, logins=()):
    """Give each request the next response, the last one again and again; ``None`` hangs up. Logins have their own."""
    left, left_of_logins = list(responses), list(logins or [login_response()])

    def respond(peer, conn):
        while request := peer.read(conn):
            these = left_of_logins if b"/api/authenticate" in request.split(b"\r\n")[0] else left
            response = these.pop(0) if len(these) > 1 else these[0]
            if response is None:
                return
            conn.sendall(response)

    return respond


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


def closed_port():
    """A port of this machine that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def hang_up(peer, conn):
    """Read the beginning of a handshake and hang up."""
    conn.recv(100)
    conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")


def cut(peer, conn):
    """Read a request and hang up."""
    peer.read(conn)


class Silent:
    """A Onebox that takes `steps` requests and then says nothing."""

    def __init__(self, steps):
        self.steps = steps

    def __call__(self, peer, conn):
        while peer.read(conn):
            if len(peer.requests) > self.steps:
                peer.over.wait(PATIENCE)
                return
            conn.sendall(login_response())
