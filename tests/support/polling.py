"""What the tests of triggers, sensors and polling share."""

from __future__ import annotations

import asyncio
import socket
from contextlib import contextmanager


class Log:
    """Collects what is logged, in place of a logger that the standard library does not know: level and line."""

    def __init__(self):
        self.lines = []

    def __getattr__(self, level):
        return lambda words, *args: self.lines.append((level, words % args))


async def first(trigger):
    """Wait for a trigger's first event."""
    async for event in trigger.run():
        return event.payload
    raise AssertionError("no event")


async def until(done):
    """Wait until something is true."""
    for _ in range(1000):
        if done():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came true")


@contextmanager
def deaf_server():
    """Accept connections and never answer; give the address."""
    with socket.create_server(("127.0.0.1", 0), backlog=256) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
