"""Run the test suites of requests and urllib3, plain and with our classes, and compare test by test.

The suites are those of the installed versions; their source distributions come from the package index and are kept in
``build/peers``. Tests that fail plain, for example because they need a network, are left out. The suites have races,
so a test that differed is repeated on both sides, and counts if it fails more often with ours.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tarfile
import time
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "peers"
PLUGIN = ROOT / "tests" / "peers"
SECONDS = 600
"""The longest that one run of a suite may take."""

REPEATS = 5
MORE_OFTEN = 2
"""How often a test that differed is repeated on both sides, and how many more failures with ours count."""

# The part of urllib3's suite about connections: our class there is one of connections.
SUITES = {
    "requests": ["tests"],
    "urllib3": [
        "test/contrib",
        "test/with_dummyserver",
        "test/test_connection.py",
        "test/test_connectionpool.py",
        "test/test_poolmanager.py",
        "test/test_proxymanager.py",
        "test/test_response.py",
    ],
}
NOT_OURS = "not http2"
"""Requests, and so our session, does not speak HTTP/2; tests of it never end."""

if version("urllib3").startswith("2.0."):
    # The servers of its other tests do not run with current libraries.
    SUITES["urllib3"] = [test for test in SUITES["urllib3"] if test.endswith(".py")]


def get_source(suite: str) -> Path:
    """Return the folder with the source distribution of the installed version, downloaded if missing."""
    name = f"{suite}-{version(suite)}"
    if not (BUILD / name).exists():
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--no-binary", ":all:", "--dest", BUILD, name.replace("-", "==")], check=True)
        with tarfile.open(BUILD / f"{name}.tar.gz") as archive:
            archive.extractall(BUILD, filter="data")
    return BUILD / name


def start(suite: str, ours: bool, tests: list[str]) -> tuple[subprocess.Popen[bytes], Path]:
    """Start one run of a suite; return it and the file with its outcomes."""
    source = get_source(suite)
    report = BUILD / f"{suite}-{'ours' if ours else 'plain'}.json"
    report.unlink(missing_ok=True)
    kept = {key: value for key, value in os.environ.items() if not key.upper().endswith("_PROXY")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "peers_plugin", "--tb=short"]
    # The suites treat warnings as errors, and are older than the libraries that warn.
    command += ["-o", "addopts=", "-o", "filterwarnings=default", "-k", NOT_OURS, *tests]
    with report.with_suffix(".txt").open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=source,
            env=kept | {"PYTHONPATH": str(PLUGIN), "PEERS_OURS": suite if ours else "", "PEERS_REPORT": str(report)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    return process, report


def run(wanted: dict[str, list[str]]) -> dict[str, tuple[dict[str, str], dict[str, str]]]:
    """Run suites side by side; return the outcomes of each, plain and with ours."""
    runs = {suite: [start(suite, ours, tests) for ours in (False, True)] for suite, tests in wanted.items()}
    end = time.monotonic() + SECONDS
    outcomes = {}
    try:
        for suite, pair in runs.items():
            for process, report in pair:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0, end - time.monotonic()))
                if not report.exists():
                    sys.exit(f"{suite} did not end:\n{report.with_suffix('.txt').read_text()[-5000:]}")
            outcomes[suite] = tuple(json.loads(report.read_text()) for _, report in pair)
    finally:
        for process, _ in (one for pair in runs.values() for one in pair):
            process.kill()
    return outcomes


def differing(plain: dict[str, str], ours: dict[str, str]) -> set[str]:
    """Return the tests with another outcome with ours, except those that fail plain."""
    return {test for test in plain if plain[test] != "failed" and ours.get(test) != plain[test]}


def read_allowed() -> dict[str, list[str]]:
    """Return what may differ in each suite."""
    allowed: dict[str, list[str]] = {suite: [] for suite in SUITES}
    for line in (PLUGIN / "allowed.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            suite, _, test = line.partition(" ")
            allowed[suite].append(test)
    return allowed


def main() -> int:
    """Compare, and print one table and what differs unexpectedly."""
    began = time.monotonic()
    allowed = read_allowed()
    results = run(SUITES)
    differs = {suite: differing(*pair) for suite, pair in results.items()}
    unexpected = {
        suite: sorted(test for test in tests if test.partition("[")[0] not in allowed[suite])
        for suite, tests in differs.items()
    }
    again = {suite: tests for suite, tests in unexpected.items() if tests}
    repeats = [run(again) for _ in range(REPEATS)] if again else []
    for suite, tests in again.items():
        for test in list(tests):
            usual = results[suite][0][test]
            odd = [sum(repeat[suite][side].get(test) != usual for repeat in repeats) for side in (0, 1)]
            sys.stdout.write(f"{suite} {test}: of {REPEATS} times not {usual}: plain {odd[0]}, ours {odd[1]}\n")
            if odd[1] - odd[0] < MORE_OFTEN:
                unexpected[suite].remove(test)
                differs[suite].remove(test)
    rows, passed, failed = [], 0, 0
    for suite, (plain, ours) in results.items():
        compared = {test for test, outcome in plain.items() if outcome != "failed"}
        names = {test.partition("[")[0] for test in differs[suite]}
        stale = [test for test in allowed[suite] if test in {t.partition("[")[0] for t in compared} - names]
        sys.stdout.writelines(f"{suite} differs: {test} ({ours.get(test, 'missing')})\n" for test in unexpected[suite])
        sys.stdout.writelines(f"{suite} does not differ any more: {test}\n" for test in stale)
        bad = len(unexpected[suite])
        by_design = len(differs[suite]) - bad
        same = len(compared) - len(differs[suite])
        rows.append((f"{suite} {version(suite)}", len(plain), len(plain) - len(compared), same, by_design, bad))
        passed, failed = passed + same + by_design, failed + bad + len(stale)
    sys.stdout.write(
        "| suite | tests | fail plain | same | differ by design | unexpected |\n|---|--:|--:|--:|--:|--:|\n"
    )
    sys.stdout.writelines(f"| {' | '.join(map(str, row))} |\n" for row in rows)
    sys.stdout.write(f"{time.monotonic() - began:.0f} s\n{passed} passed, {failed} failed\n")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
