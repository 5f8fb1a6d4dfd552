"""Mutation testing: change the package in one place at a time and see whether a test notices.

Needs what ``make test`` leaves: which tests run which line, and how long each takes. The tests are collected once; a
mutant is tried in a fork of that process, against tests that run its line until one fails: those named like its
module, the fastest first, then the fastest of the others. The sandbox is left out, for it is a tool of the tests, and
so are tests of other processes, which a fork can't reach.
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
from importlib.machinery import SourceFileLoader
from itertools import pairwise
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any
from xml.etree import ElementTree

import coverage
import pytest
from mutations import PACKAGE, Mutant, mutants_of

ROOT = PACKAGE.parent
LISTED = ROOT / "tests" / "equivalent_mutants.txt"
PYTEST = ["-qs", "-p", "no:cacheprovider", "-m", "not processes", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
KEPT = {"conftest", "airflow_home", "sandbox"}  # when the package and its tests are imported anew
MOST_OTHERS = 50  # tests of other modules that try to kill what the module's own let live
MIRRORS = {"paging": "pace", "auth": "wire", "client": "wire", "outcome": "wire", "transport": "wire"}
MIN_KILLED, MIN_OF_SAMPLE = 0.95, 0.9  # of each module, and of a sample of all modules together


def read_listed() -> set[tuple[str, str, str]]:
    """Read the mutants that no test can kill: three lines of a block, the fourth is the reason."""
    blocks = [block.strip().splitlines() for block in LISTED.read_text().split("\n\n")[1:]]
    return {(module, before.strip(), after.strip().removeprefix("-> ")) for module, before, after, _ in blocks}


def is_own(module: str, test: str) -> bool:
    """Tell whether a test stands in a file or folder named like a module, or in its further one."""
    folder, _, stem = module.removesuffix(".py").rpartition("/")
    file = test.partition("::")[0]
    return f"tests/{folder}/" in file if folder else stem in file or MIRRORS.get(stem, stem) in file


@dataclass
class Trial:
    """Tests to run in a fork, with a mutant or with the package as it is; in the fork, a plugin of pytest."""

    limits: dict[str, float]  # the tests in their order, each with the seconds after which it hangs
    is_anew: bool  # whether all is imported anew, for the change is of what runs at import
    mutant: Mutant | None = None

    def run(self, session: pytest.Session, functions: list[FunctionType]) -> None:
        """Run the tests and end the process, with 0 if all pass."""
        null = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(null, number)
        get_code = SourceFileLoader.get_code

        def get_mutated_code(loader: SourceFileLoader, name: str) -> Any:
            is_mutated = self.mutant and loader.path == self.mutant.code.co_filename
            return self.mutant.code if self.mutant and is_mutated else get_code(loader, name)

        SourceFileLoader.get_code = get_mutated_code  # type: ignore[assignment,method-assign]
        if not self.is_anew and self.swap(functions):
            self.pytest_runtestloop(session)
        for name, module in list(sys.modules.items()):
            file = getattr(module, "__file__", None) or ""
            if file.startswith((f"{PACKAGE}/", f"{ROOT}/tests/")) and not KEPT & set(name.split(".")):
                del sys.modules[name]
        pytest.main([*PYTEST, *{test.partition("::")[0]: 0 for test in self.limits}], plugins=[self])

    def swap(self, functions: list[FunctionType]) -> bool:
        """Put the mutant into the functions that its module has made; tell whether they take it."""
        waiting, codes = [self.mutant.code] if self.mutant else [], {}
        while waiting:
            code = waiting.pop()
            codes[code.co_filename, code.co_name, code.co_firstlineno] = code
            waiting += [inner for inner in code.co_consts if isinstance(inner, CodeType)]
        for function in functions:
            code = function.__code__
            try:
                function.__code__ = codes.get((code.co_filename, code.co_name, code.co_firstlineno), code)
            except ValueError:  # It uses other variables of the function around it.
                return False
        return True

    def pytest_runtestloop(self, session: pytest.Session) -> None:
        """Run the tests up to the first that fails, and leave the last one's name to the parent."""
        items = {item.nodeid: item for item in session.items}
        chosen = [items[test] for test in self.limits if test in items]
        for item, following in pairwise([*chosen, None]):
            if session.testsfailed:  # Perhaps it is the import that failed.
                os._exit(1)
            Path(tempfile.gettempdir(), str(os.getpid())).write_text(item.nodeid)  # type: ignore[union-attr]
            signal.setitimer(signal.ITIMER_REAL, self.limits[item.nodeid])  # type: ignore[union-attr]
            session.ihook.pytest_runtest_protocol(item=item, nextitem=following)
        os._exit(bool(session.testsfailed))


@dataclass
class Forks:
    """A plugin of pytest that runs trials in forks of the process that has collected the tests."""

    trials: list[Trial]
    measured: set[str]  # tests that ran a line of the package
    survivors: list[Mutant] = field(default_factory=list)
    unfit: list[str] = field(default_factory=list)  # tests that fail without a mutant, too

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Run the trials, and then without a mutant the tests that have killed one."""
        functions = [one for one in gc.get_objects() if isinstance(one, FunctionType)]
        functions = [one for one in functions if one.__code__.co_filename.startswith(f"{PACKAGE}/")]
        others = [item.nodeid for item in session.items if item.nodeid not in self.measured]
        for trial in self.trials:
            if trial.mutant and trial.is_anew:  # What runs at import may show in a test that runs nothing else.
                trial.limits |= {test: 10 for test in others if is_own(trial.mutant.key[0], test)}
        gc.freeze()  # What the forks share stays shared.
        checks = {is_anew: Trial({}, is_anew) for is_anew in (False, True)}
        waiting, running = deque(self.trials), dict[int, Trial]()
        while waiting or running or checks:
            if not waiting and not running:
                waiting.extend(checks.values())
                checks = {}
            if waiting and len(running) < (os.cpu_count() or 1):
                trial = waiting.popleft()
                if pid := os.fork():
                    running[pid] = trial
                    continue
                try:
                    trial.run(session, functions)
                finally:
                    os._exit(2)
            pid, status = os.wait()
            trial, note = running.pop(pid), Path(tempfile.gettempdir(), str(pid))
            last = note.read_text() if note.exists() else ""
            note.unlink(missing_ok=True)
            if not trial.mutant:
                self.unfit += [last] if status else []
            elif not status:
                self.survivors.append(trial.mutant)
            elif last:
                checks[trial.is_anew].limits[last] = trial.limits[last]
        return True


def trials_of(
    module: str, mutants: list[Mutant], data: coverage.CoverageData, seconds: dict[str, float]
) -> list[Trial]:
    """Choose the tests for each mutant of a module: those that ran its line."""
    by_line: dict[int, set[str]] = defaultdict(set)
    for file in data.measured_files():
        if file.endswith(f"/{PACKAGE.name}/{module}"):
            for line, found in data.contexts_by_lineno(file).items():
                by_line[line].update(filter(None, found))
    own = {test for test in data.measured_contexts() if is_own(module, test)}
    trials = []
    for mutant in mutants:
        tests = set[str]().union(
            own if mutant.runs_at_import else (), *(by_line.get(line, ()) for line in mutant.lines)
        )
        took = {test: seconds.get(re.sub(r"\.py::|::|/", ".", test), 10) for test in tests or own}
        order = sorted(took, key=lambda test: (not is_own(module, test), took[test]))
        order = order[: MOST_OTHERS + sum(is_own(module, test) for test in order)]
        limits = {test: 5 + 5 * took[test] for test in order}
        trials.append(Trial(limits, mutant.runs_at_import or not tests, mutant))
    return trials


def main() -> int:
    """Try all mutants, or a sample of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("modules", nargs="*", help="such as paging.py or hooks/onebox.py; all by default")
    parser.add_argument("--sample", type=int, help="mutants a module; one is in it as long as its statement stays")
    options = parser.parse_args()
    os.chdir(ROOT)
    cases = [case.attrib for case in ElementTree.parse("build/tests.xml").iter("testcase")]  # noqa: S314 - pytest's
    seconds = {f"{case['classname']}.{case['name']}": float(case["time"]) for case in cases}
    listed, keys, began = read_listed(), set(), time.monotonic()
    data = coverage.CoverageData(str(ROOT / ".coverage"))
    data.read()
    forks, counts = Forks([], data.measured_contexts()), defaultdict[str, Counter[str]](Counter)
    names = options.modules or sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("[!_]*.py"))
    for name in [name for name in names if not name.startswith("sandbox/")]:
        mutants = sorted(mutants_of(PACKAGE / name), key=lambda mutant: zlib.crc32(repr(mutant.key).encode()))
        keys |= {mutant.key for mutant in mutants}
        mutants = mutants[: options.sample]
        unlisted = [mutant for mutant in mutants if mutant.key not in listed]
        counts[name] = Counter(mutants=len(mutants), tried=len(unlisted))
        forks.trials += trials_of(name, unlisted, data, seconds)
    if pytest.main(PYTEST, plugins=[forks]):
        sys.exit("The tests could not be collected.")
    bad = [f"{test} fails without a mutant" for test in forks.unfit]
    bad += [f"{LISTED.name} lists what is no mutant: {key}" for key in listed - keys if not options.modules]
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
