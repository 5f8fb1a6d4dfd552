"""Mutation testing: change the package in one place at a time and check that a test fails.

Needs the data of ``make test``: which tests run which line, and how long each takes. A mutant is tried in a fork of a
process that has imported Airflow and the tests, against tests that run its line until one fails: those of its module,
the fastest first, then the fastest of the others. The sandbox is left out, as a tool of the tests, and so are tests of
other processes, which a fork can't reach. A test that has killed a mutant must pass without one.
"""

from __future__ import annotations

import argparse
import gc
import os
import re
import signal
import sys
import tempfile
import time
import zlib
from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field
from functools import cache
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import coverage
import pytest
from mutations import PACKAGE, Mutant, mutants_of

ROOT = PACKAGE.parent
LISTED = ROOT / "tests" / "equivalent_mutants.txt"
PYTEST = ["-qs", "-p", "no:cacheprovider", "-m", "not processes", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
# When the package and its tests are imported again: what does not import the package, or has set up Airflow.
KEPT = ("tests.conftest", "support.airflow_home", "airflow_provider_onebox.sandbox")
MOST_OTHERS = 50  # most tests of other modules for a mutant that survives its own
MIN_KILLED, MIN_OF_SAMPLE = 0.95, 0.9  # of each module, and of a sample of all modules together


def read_listed() -> set[tuple[str, str, str]]:
    """Read the mutants that no test can kill: three lines of a block, the fourth is the reason."""
    blocks = [block.strip().splitlines() for block in LISTED.read_text().split("\n\n")[1:]]
    return {(module, before.strip(), after.strip().removeprefix("-> ")) for module, before, after, _ in blocks}


@cache
def is_own(module: str, test: str) -> bool:
    """Return whether a test is in a file that mirrors a module."""
    return test.startswith(
        f"tests/{module.removesuffix('.py').rpartition('/')[0]}/test_{Path(module).stem.lstrip('_')}".replace("//", "/")
    )


@dataclass
class Trial:
    """Tests to run in a fork, with or without a mutant; in the fork, a plugin of pytest."""

    seconds: dict[str, float]  # expected duration by test; the order of the files
    mutant: Mutant | None = None

    def run(self) -> int:
        """Import the package and its tests again, and run the tests up to the first failure."""
        for number in (0, 1, 2):
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
        get_code = SourceFileLoader.get_code

        def get_mutated_code(loader: SourceFileLoader, name: str) -> Any:
            is_mutated = self.mutant and loader.path == self.mutant.code.co_filename
            return self.mutant.code if self.mutant and is_mutated else get_code(loader, name)

        SourceFileLoader.get_code = get_mutated_code  # type: ignore[assignment,method-assign]
        for name, module in list(sys.modules.items()):
            file = getattr(module, "__file__", None) or ""
            if file.startswith((f"{PACKAGE}/", f"{ROOT}/tests/")) and not name.startswith(KEPT):
                del sys.modules[name]
        for file in dict.fromkeys(test.partition("::")[0] for test in self.seconds):
            self.begin(file)
            if code := pytest.main([*PYTEST, file], plugins=[self]):
                return code
        return 0

    def begin(self, name: str) -> None:
        """Note for the parent which test or import begins, and limit its time."""
        Path(tempfile.gettempdir(), str(os.getpid())).write_text(name)
        # A busy machine does not change the processor time. The other limit is for a mutant that makes a test wait for
        # ever; without a mutant, a slow test only waits for the processor.
        signal.setitimer(signal.ITIMER_PROF, 5 + 5 * self.seconds.get(name, 1))
        signal.setitimer(signal.ITIMER_REAL, (10 + 10 * self.seconds.get(name, 1)) * (1 if self.mutant else 20))

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Run the tests of a file, the fastest first."""
        tests = [item for item in session.items if item.nodeid in self.seconds]
        tests.sort(key=lambda item: self.seconds[item.nodeid])
        for item, following in zip(tests, [*tests[1:], None], strict=False):
            self.begin(item.nodeid)
            session.ihook.pytest_runtest_protocol(item=item, nextitem=following)
            if session.testsfailed:
                os._exit(pytest.ExitCode.TESTS_FAILED)
        return True


def attempt(trials: list[Trial]) -> list[tuple[Trial, int, str]]:
    """Run trials in forks, as many at once as there are processors; return each trial's exit code and last test."""
    waiting, running, ended = deque(trials), dict[int, Trial](), []
    while waiting or running:
        while waiting and len(running) < (os.cpu_count() or 1):
            trial = waiting.popleft()
            if not (pid := os.fork()):
                try:
                    os._exit(trial.run())
                finally:
                    os._exit(pytest.ExitCode.INTERNAL_ERROR)
            running[pid] = trial
        pid, status = os.wait()
        note = Path(tempfile.gettempdir(), str(pid))
        ended.append((running.pop(pid), os.waitstatus_to_exitcode(status), note.read_text()))
    return ended


def choose(mutant: Mutant, seconds: dict[str, float], ran: dict[int, list[str]]) -> Trial:
    """Choose the tests for a mutant: those that ran its line, or its module's if none did or it runs at import."""
    module = mutant.key[0]
    # A module without a test file is tested by those of its folder.
    own = {test for test in seconds if is_own(module, test)} or {
        test for test in seconds if test.startswith(f"tests/{Path(module).parent}/")
    }
    fit = set().union(own if mutant.runs_at_import else (), *(ran.get(line, ()) for line in mutant.lines))
    order = sorted(fit & seconds.keys() or own, key=lambda test: (test not in own, seconds[test]))
    return Trial({test: seconds[test] for test in order[: len(own.intersection(order)) + MOST_OTHERS]}, mutant)


@dataclass
class Forks:
    """A plugin of pytest that tries mutants in forks of the process that has collected the tests."""

    mutants: list[Mutant] = field(default_factory=list)
    survivors: list[Mutant] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Try the mutants, and then without a mutant each test that has killed one."""
        cases = [case.attrib for case in ElementTree.parse("build/tests.xml").iter("testcase")]  # noqa: S314 - pytest's
        known = {f"{case['classname']}.{case['name']}": float(case["time"]) for case in cases}
        seconds = {item.nodeid: known.get(re.sub(r"\.py::|::|/", ".", item.nodeid), 1) for item in session.items}
        data = coverage.CoverageData(".coverage")
        data.read()
        files = {file.partition(f"/{PACKAGE.name}/")[2]: file for file in data.measured_files()}
        ran = {module: data.contexts_by_lineno(file) for module, file in files.items()}
        gc.freeze()  # Keeps the memory of the forks shared.
        killers = {}
        for trial, status, last in attempt([choose(mutant, seconds, ran[mutant.key[0]]) for mutant in self.mutants]):
            if not status and trial.mutant:
                self.survivors.append(trial.mutant)
            elif status in (pytest.ExitCode.TESTS_FAILED, -signal.SIGPROF, -signal.SIGALRM, -signal.SIGSEGV):
                killers[last] = Trial({last: seconds.get(last, 1)})
            else:
                self.bad.append(f"{last} ended with {status}: {trial.mutant}")
        self.bad += [f"{last} fails without a mutant" for _, status, last in attempt([*killers.values()]) if status]
        return True


def main() -> int:
    """Try all mutants, or a sample of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("modules", nargs="*", help="such as api/client.py or hooks/onebox.py; all by default")
    parser.add_argument(
        "--sample", type=int, help="mutants of each module; the same ones until their statements change"
    )
    options = parser.parse_args()
    os.chdir(ROOT)
    listed, keys, began = read_listed(), set(), time.monotonic()
    forks, counts = Forks(), defaultdict[str, Counter[str]](Counter)
    names = options.modules or sorted(
        str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"
    )
    for name in [name for name in names if not name.startswith("sandbox/")]:
        mutants = sorted(mutants_of(PACKAGE / name), key=lambda mutant: zlib.crc32(repr(mutant.key).encode()))
        keys |= {mutant.key for mutant in mutants}
        unlisted = [mutant for mutant in mutants[: options.sample] if mutant.key not in listed]
        counts[name] = Counter(mutants=len(mutants[: options.sample]), tried=len(unlisted))
        forks.mutants += unlisted
    if pytest.main(PYTEST, plugins=[forks]):
        sys.exit("The tests could not be collected.")
    bad = forks.bad + [f"{LISTED.name} lists an unknown mutant: {key}" for key in listed - keys if not options.modules]
    for mutant in sorted(forks.survivors, key=lambda mutant: (mutant.key[0], mutant.line)):
        module, before, after = mutant.key
        counts[module]["surviving"] += 1
        sys.stdout.write(f"# line {mutant.line}\n{module}\n    {before}\n -> {after}\n\n")
    sys.stdout.write("| module | mutants | killed | listed | surviving | score |\n|---|--:|--:|--:|--:|--:|\n")
    for name, count in (*counts.items(), ("all", sum(counts.values(), Counter()))):
        tried, surviving = count["tried"], count["surviving"]
        killed, least = tried - surviving, MIN_OF_SAMPLE if options.sample else MIN_KILLED
        numbers = f"{count['mutants']} | {killed} | {count['mutants'] - tried} | {surviving}"
        sys.stdout.write(f"| {name} | {numbers} | {killed / max(tried, 1):.1%} |\n")
        if killed < least * tried and (name == "all" or not options.sample):
            bad.append(f"{name}: too many survive; {least:.0%} have to be killed")
    sys.stdout.write("".join(f"{line}\n" for line in bad) + f"{time.monotonic() - began:.0f} s\n")
    return bool(bad)


if __name__ == "__main__":
    # A fork that ends at once leaves its temporary files behind.
    with tempfile.TemporaryDirectory(prefix="onebox-mutants-", ignore_cleanup_errors=True) as tempfile.tempdir:
        os.environ["TMPDIR"] = tempfile.tempdir
        sys.exit(main())
