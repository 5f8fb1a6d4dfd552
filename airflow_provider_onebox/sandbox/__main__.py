"""The command line: print the address on the first line, serve until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
from typing import Any

from .server import EMAIL, PASSWORD, Sandbox
from .state import KINDS, Settings


def _setting(text: str) -> tuple[str, Any]:
    """Read NAME=JSON."""
    name, _, value = text.partition("=")
    return name, json.loads(value)


def main(arguments: list[str] | None = None) -> int:
    """Run the sandbox."""
    parser = argparse.ArgumentParser(prog="python -m airflow_provider_onebox.sandbox", description="A local Onebox.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 (the default) takes a free one")
    parser.add_argument("--base-path", default="", metavar="PATH", help="such as /feature/voc")
    parser.add_argument("--records", type=int, default=1000, metavar="N", help="rows of each resource of each site")
    parser.add_argument("--sites", default="169,170", metavar="ID,ID", help="default %(default)s")
    parser.add_argument("--email", default=EMAIL, help="default %(default)s")
    parser.add_argument("--password", default=PASSWORD)
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="for the data and the random faults")
    parser.add_argument("--token-life", type=float, default=900, metavar="S")
    parser.add_argument("--latency", type=float, default=0, metavar="MS")
    parser.add_argument("--fault-rate", type=float, default=0, metavar="SHARE", help="of the requests, 0 to 1")
    parser.add_argument(
        "--fault-kinds",
        default=",".join(str(kind) for kind in Settings.fault_kinds),
        help=f"of {', '.join(sorted(KINDS))}",
    )
    parser.add_argument(
        "--set",
        type=_setting,
        action="append",
        default=[],
        metavar="NAME=JSON",
        help=f"any of {', '.join(Settings.__dataclass_fields__)}",
    )
    options = parser.parse_args(arguments)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    settings = {
        "token_life": options.token_life,
        "latency": options.latency / 1000,
        "fault_rate": options.fault_rate,
        "fault_kinds": options.fault_kinds.split(","),
        **dict(options.set),
    }
    try:
        sandbox = Sandbox(
            records=options.records,
            sites=options.sites.split(","),
            email=options.email,
            password=options.password,
            base_path=options.base_path,
            host=options.host,
            port=options.port,
            seed=options.seed,
            **settings,
        )
    except (TypeError, ValueError) as problem:
        parser.error(str(problem))
    with sandbox:
        sys.stdout.write(f"{sandbox.url}\n")
        sys.stdout.flush()
        stop.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
