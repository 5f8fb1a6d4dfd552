"""What the tests of triggers, sensors and polling share."""

from __future__ import annotations

import asyncio
import socket
import threading
from bisect import bisect_left
from contextlib import contextmanager, suppress

from airflow_provider_onebox.api.listing import Listing
from support.processes import PATIENCE


class Log:
    """Collects what is logged, in place of a logger that the standard library does not know: level and line."""

    def __init__(self):
        self.lines = []

    def __getattr__(self, level):
        return lambda message, *args: self.lines.append((level, message % args))

    @classmethod
    def of(cls, monkeypatch, kind):
        """Collect what the objects of a class log; return the list that is filled."""
        log = cls()
        monkeypatch.setattr(kind, "log", log)
        return log.lines


async def first(trigger):
    """Wait for a trigger's first event."""
    async for event in trigger.run():
        return event.payload
    raise AssertionError("no event")


async def until(done):
    """Wait until something is true."""
    for _ in range(100 * PATIENCE):
        if done():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came true")


class Gate:
    """Holds each count until it is let through, and then does as it says."""

    def __init__(self, monkeypatch, outcome=Listing.count):
        self.begun, self.outcome, self.tickets = 0, outcome, threading.Semaphore(0)
        gate = self

        def count_records(lists, *args, **kwargs):
            gate.begun += 1
            assert gate.tickets.acquire(timeout=PATIENCE)
            return gate.outcome(lists, *args, **kwargs)

        monkeypatch.setattr(Listing, "count", count_records)

    async def until_begun(self, number):
        """Wait until so many counts have begun."""
        await until(lambda: self.begun == number)


class DeafServer:
    """Accepts connections and never responds."""

    def __init__(self):
        self.connections = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def _accept(self):
        with suppress(OSError):
            while True:
                self.connections.append(self._listener.accept()[0])

    def close(self):
        """Drop all connections and take no more."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        for connection in self.connections:
            connection.close()


@contextmanager
def deaf_server():
    """Run a server that accepts connections and never responds."""
    server = DeafServer()
    try:
        yield server
    finally:
        server.close()


def add_late(sandbox, row_id):
    """Let a ticket appear whose id lies between those of others, as a transaction that commits late does."""
    table = sandbox.state.table("ticketrz", None)
    with sandbox.state.lock:
        at = bisect_left(table.ids, row_id)
        assert table.ids[at] != row_id
        table.ids.insert(at, row_id)
        table._rows.insert(at, None)
