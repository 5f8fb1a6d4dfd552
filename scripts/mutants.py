"""Mutation testing: change the package in one place at a time and see whether a test notices.

Needs what ``make test`` leaves: which tests run which line, and how long each takes. The tests are collected once; a
mutant is tried in a fork of that process, against tests that run its line until one fails: those that mirror its
module, the fastest first, then the fastest of the others. The sandbox is left out, for it is a tool of the tests,
and so are tests of other processes, which a fork can't reach.
"""

from __future__ import annotations

import argparse
import gc
import math
import os
import re
import signal
import sys
import tempfile
import time
import zlib
from collections import Counter, defaultdict, deque
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from importlib.machinery import SourceFileLoader
from io import StringIO
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
TIMES = ROOT / "build" / "tests.xml"
PYTEST = ["-qs", "-p", "no:cacheprovider", "-m", "not processes", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
KEPT = {"conftest", "airflow_home", "sandbox"}
"""Modules that stay when the package and its tests are imported anew."""

MOST_OTHERS = 50
"""So many tests of other modules try to kill a mutant that the module's own let live."""

MIRRORS = {
    "__init__": "provider_info",
    "paging": "pace",
    "client": "wire",
    "transport": "wire",
    "outcome": "wire",
    "auth": "wire",
    "export": "export_machine",
    "lineage": "hook_lineage",
}
"""Modules with another file of tests beside the one of their name."""

MIN_KILLED = 0.95
BY_CHANCE = 0.001
"""A sample fails where code of the wanted score would have as many survivors less often than this."""


def read_listed() -> set[tuple[str, str, str]]:
    """Read the mutants that no test can kill: three lines of a block, the fourth is the reason."""
    blocks = [block.strip().splitlines() for block in LISTED.read_text().split("\n\n")[1:]]
    return {(module, before.strip(), after.strip().removeprefix("-> ")) for module, before, after, _ in blocks}


def read_tests() -> dict[str, dict[int, set[str]]]:
    """Read which tests run which line, by module."""
    data = coverage.CoverageData(str(ROOT / ".coverage"))
    data.read()
    found: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    for file in data.measured_files():
        for line, tests in data.contexts_by_lineno(file).items():
            found[file.rpartition(f"/{PACKAGE.name}/")[2]][line].update(filter(None, tests))
    return found


def read_seconds() -> dict[str, float]:
    """Read how long each test takes, by the words of its name."""
    cases = [case.attrib for case in ElementTree.parse(TIMES).iter("testcase")]  # noqa: S314 - pytest wrote it
    return {f"{case['classname']}.{case['name']}": float(case["time"]) for case in cases}


def mirrors(module: str, test: str) -> bool:
    """Tell whether a test stands in the file or folder named like a module."""
    folder, _, stem = module.removesuffix(".py").rpartition("/")
    files = (f"/test_{stem}.py", f"/test_{MIRRORS.get(stem, stem)}.py")
    return test.startswith(f"tests/{folder}/") if stem == "onebox" else test.partition("::")[0].endswith(files)


@dataclass
class Trial:
    """Tests to run in a fork, with a mutant or with the package as it is; in the fork, a plugin of pytest."""

    limits: dict[str, float]
    """The tests in their order, each with the seconds after which it hangs."""

    is_anew: bool
    """Whether to import the package and the tests anew, for the change is of what runs at import."""

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
            Path(tempfile.gettempdir(), str(os.getpid())).write_text(item.nodeid)  # type: ignore[union-attr]
            signal.setitimer(signal.ITIMER_REAL, self.limits[item.nodeid])  # type: ignore[union-attr]
            session.ihook.pytest_runtest_protocol(item=item, nextitem=following)
            if session.testsfailed:
                os._exit(1)
        os._exit(0)


@dataclass
class Forks:
    """A plugin of pytest that runs trials in forks of the process that has collected the tests."""

    trials: list[Trial]
    jobs: int
    survivors: list[Mutant] = field(default_factory=list)
    unfit: list[str] = field(default_factory=list)
    """Tests that fail without a mutant, too."""

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Run the trials, and then without a mutant the tests that have killed one."""
        functions = [one for one in gc.get_objects() if isinstance(one, FunctionType)]
        functions = [one for one in functions if one.__code__.co_filename.startswith(f"{PACKAGE}/")]
        gc.freeze()  # What the forks share stays shared.
        checks = {is_anew: Trial({}, is_anew) for is_anew in (False, True)}
        waiting, running = deque(self.trials), dict[int, Trial]()
        while waiting or running or checks:
            if not waiting and not running:
                waiting.extend(checks.values())
                checks = {}
            if waiting and len(running) < self.jobs:
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


def is_enough(tried: int, surviving: int, is_sample: bool) -> bool:
    """Tell whether the score is reached, or whether it may be, as far as a sample shows."""
    if not is_sample:
        return tried - surviving >= MIN_KILLED * tried
    odds = (
        math.comb(tried, n) * (1 - MIN_KILLED) ** n * MIN_KILLED ** (tried - n) for n in range(surviving, tried + 1)
    )
    return sum(odds) >= BY_CHANCE


def main() -> int:
    """Try all mutants, or a sample of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("modules", nargs="*", help="such as paging.py or hooks/onebox.py; all by default")
    parser.add_argument("--sample", type=int, help="mutants a module; one is in it as long as its statement stays")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="forks at a time")
    options = parser.parse_args()
    os.chdir(ROOT)
    listed, by_module, seconds, began = read_listed(), read_tests(), read_seconds(), time.monotonic()
    every = {test for by_line in by_module.values() for tests in by_line.values() for test in tests}
    trials, keys, counts = list[Trial](), set(), defaultdict[str, Counter[str]](Counter)
    names = options.modules or sorted(str(p.relative_to(PACKAGE)) for p in PACKAGE.rglob("*.py"))
    for name in [n for n in names if not n.startswith("sandbox/")]:
        mutants, by_line = mutants_of(PACKAGE / name), by_module[name]
        keys |= {mutant.key for mutant in mutants}
        own = {test for test in every if mirrors(name, test)}
        if mutants and not own:
            sys.exit(f"No test of {name} left its name in .coverage: run `make test` first.")
        for mutant in sorted(mutants, key=lambda m: zlib.crc32(repr(m.key).encode()))[: options.sample]:
            counts[name]["listed" if mutant.key in listed else "tried"] += 1
            tests = {test for line in mutant.lines for test in by_line.get(line, ())}
            took = {test: seconds.get(re.sub(r"\.py::|::|/", ".", test), 10) for test in tests or own}
            order = sorted(took, key=lambda test: (not mirrors(name, test), took[test]))
            order = order[: MOST_OTHERS + sum(mirrors(name, test) for test in order)]
            limits = {test: 5 + 5 * took[test] for test in order}
            if mutant.key not in listed:
                trials.append(Trial(limits, mutant.runs_at_import or not tests, mutant))
    forks, output = Forks(trials, options.jobs), StringIO()
    with redirect_stdout(output):
        code = pytest.main(PYTEST, plugins=[forks])
    if code:
        sys.exit(f"The tests could not be collected:\n{output.getvalue()}")
    bad = [f"{test} fails without a mutant" for test in forks.unfit]
    bad += [f"{LISTED.name} lists what is no mutant: {key}" for key in listed - keys if not options.modules]
    for mutant in sorted(forks.survivors, key=lambda m: (m.module, m.line)):
        counts[mutant.module]["surviving"] += 1
        sys.stdout.write(f"# line {mutant.line}\n{mutant.module}\n    {mutant.before}\n -> {mutant.after}\n\n")
    sys.stdout.write("| module | mutants | killed | listed | surviving | score |\n|---|--:|--:|--:|--:|--:|\n")
    for name, count in (*counts.items(), ("all", sum(counts.values(), Counter()))):
        tried, on_list, surviving = (count[kind] for kind in ("tried", "listed", "surviving"))
        score = 1 - surviving / max(tried, 1)
        row = (name, tried + on_list, tried - surviving, on_list, surviving, f"{score:.1%}")
        sys.stdout.write(f"| {' | '.join(map(str, row))} |\n")
        if not is_enough(tried, surviving, bool(options.sample)):
            bad.append(f"{name}: too many survive; {MIN_KILLED:.0%} have to be killed")
    sys.stdout.write("".join(f"{line}\n" for line in bad) + f"{time.monotonic() - began:.0f} s\n")
    return bool(bad)


if __name__ == "__main__":
    # A fork that ends at once leaves its temporary files behind.
    with tempfile.TemporaryDirectory(prefix="onebox-mutants-", ignore_cleanup_errors=True) as tempfile.tempdir:
        os.environ["TMPDIR"] = tempfile.tempdir
        sys.exit(main())
