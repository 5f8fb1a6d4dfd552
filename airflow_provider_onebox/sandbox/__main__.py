"""The command line: print the address on the first line, then how to log in; serve until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import inspect
import json
import shlex
import signal
import sys
import threading
from datetime import datetime
from typing import Any

from .app import CALLS
from .server import EMAIL, PASSWORD, Sandbox
from .state import KINDS, Settings, State


def _setting(text: str) -> tuple[str, Any]:
    """Read NAME=JSON."""
    name, _, value = text.partition("=")
    return name, json.loads(value)


def _calls() -> str:
    """Describe what can be posted, from the methods that handle it."""
    lines = ["POST /sandbox/<call> changes the sandbox while it runs; the body is a JSON object of the arguments:", ""]
    for call in CALLS:
        method = getattr(State, call)
        arguments = [
            str(argument.replace(annotation=argument.empty))
            for argument in inspect.signature(method).parameters.values()
            if argument.name != "self"
        ]
        lines += [f"  {call}({', '.join(arguments)})", f"      {(method.__doc__ or '').splitlines()[0]}"]
    return "\n".join(lines)


def _welcome(sandbox: Sandbox) -> str:
    """Return the address, the account and a connection for Airflow, to be printed."""
    site = sandbox.state.sites[0]
    connection = {
        "conn_type": "onebox",
        "host": sandbox.url,
        "login": sandbox.email,
        "password": sandbox.password,
        "extra": {"site_id": int(site) if site.isdecimal() else site},
    }
    return (
        f"{sandbox.url}\n"
        f"E-mail: {sandbox.email}\nPassword: {sandbox.password}\nSites: {', '.join(sandbox.state.sites)}\n"
        f"AIRFLOW_CONN_ONEBOX_DEFAULT={shlex.quote(json.dumps(connection))}\n"
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the sandbox."""
    parser = argparse.ArgumentParser(
        prog="python -m airflow_provider_onebox.sandbox",
        description="Run a local Onebox for tests, until you stop it.",
        epilog=_calls(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; default %(default)s")
    parser.add_argument("--port", type=int, default=0, help="default 0, which picks a free port")
    parser.add_argument("--base-path", default="", metavar="PATH", help="a path in front of /api, such as /feature/voc")
    parser.add_argument(
        "--records",
        type=int,
        default=1000,
        metavar="N",
        help="records in each resource of each site; default %(default)s",
    )
    parser.add_argument("--sites", default="169,170", metavar="ID,ID", help="default %(default)s")
    parser.add_argument("--email", default=EMAIL, help="default %(default)s")
    parser.add_argument("--password", default=PASSWORD, help="it is printed at the start")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the data and the random faults")
    parser.add_argument(
        "--until",
        type=datetime.fromisoformat,
        metavar="TIME",
        help="when the last record was created, such as '2026-11-24 08:30'; default the end of yesterday",
    )
    parser.add_argument(
        "--token-life", type=float, default=900, metavar="S", help="seconds until a token expires; default 900"
    )
    parser.add_argument("--latency", type=float, default=0, metavar="MS", help="milliseconds before each response")
    parser.add_argument(
        "--fault-rate", type=float, default=0, metavar="SHARE", help="share of requests that fail at random, 0 to 1"
    )
    parser.add_argument(
        "--fault-kinds",
        default=",".join(str(kind) for kind in Settings.fault_kinds),
        help=f"how they fail, separated by commas: {', '.join(sorted(KINDS))}",
    )
    parser.add_argument(
        "--set",
        type=_setting,
        action="append",
        default=[],
        metavar="NAME=JSON",
        help=f"change a setting: {', '.join(Settings.__dataclass_fields__)}",
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
            until=options.until,
            **settings,
        )
    except (TypeError, ValueError) as problem:
        parser.error(str(problem))
    try:
        sandbox.start()
    except (OSError, OverflowError) as problem:
        reason = str(getattr(problem, "strerror", None) or problem).rstrip(".")
        sys.stderr.write(f"The sandbox can't listen on {options.host}, port {options.port}: {reason}.\n")
        return 1
    try:
        sys.stdout.write(_welcome(sandbox))
        sys.stdout.flush()
        stop.wait()
    finally:
        sandbox.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
