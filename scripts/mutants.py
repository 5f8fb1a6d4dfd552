"""Mutation testing: change the package in one place at a time and see whether a test notices.

Needs the contexts that ``make test`` leaves in ``.coverage``: a mutant is held against the tests that run its line.
Airflow is imported once and every mutant is tried in a fork, so one costs about a second. The sandbox is left
out, for it is a tool of the tests, and so are tests of other processes, which a fork can't reach.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter, deque
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import TYPE_CHECKING, Any

import coverage

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import CodeType

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "airflow_provider_onebox"
LISTED = ROOT / "tests" / "equivalent_mutants.txt"
MIN_KILLED = 0.95
LIVES = (0, 5)
"""What pytest ends with if all tests pass, or none was there."""

SECONDS = 300
"""After which a module's own tests hang."""

# fmt: off
OTHERS = {
    "Lt": "LtE GtE", "LtE": "Lt Gt", "Gt": "GtE LtE", "GtE": "Gt Lt", "Eq": "NotEq", "NotEq": "Eq", "Is": "IsNot",
    "IsNot": "Is", "In": "NotIn", "NotIn": "In", "And": "Or", "Or": "And", "Add": "Sub", "Sub": "Add", "Mult": "Div",
    "Div": "Mult", "FloorDiv": "Mult", "Mod": "Mult",
}
# fmt: on


@dataclass(frozen=True)
class Mutant:
    """One change of one module."""

    module: str
    line: int
    before: str
    after: str
    code: CodeType
    lines: frozenset[int]

    @property
    def key(self) -> tuple[str, str, str]:
        """How the list of equivalent mutants names it."""
        return self.module, self.before, self.after


def variants(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what could stand in a node's place; the node itself is left as it is."""

    def others(operator: ast.AST) -> list[Any]:
        return [getattr(ast, name)() for name in OTHERS.get(type(operator).__name__, "").split()]

    match node:
        case ast.Compare(left, [first, *rest], comparators):
            yield from (ast.Compare(left, [other, *rest], comparators) for other in others(first))
        case ast.BoolOp(operator, values):
            yield from (ast.BoolOp(other, values) for other in others(operator))
        case ast.BinOp(left, operator, right):
            yield from (ast.BinOp(left, other, right) for other in others(operator))
        case ast.UnaryOp(op=ast.Not()):
            yield node.operand
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value) | float(value)):
            yield ast.Constant(value + 1)
        case ast.Constant(value=str(value)) if value and not set(value) & {" ", "\n"}:
            yield ast.Constant(f"{value}_")
        case ast.Call(ast.Name("min" | "max")):
            return
        case ast.Call(args=[first, second, *rest]) if not isinstance(second, ast.Starred):
            yield ast.Call(node.func, [second, first, *rest], node.keywords)
        case ast.Return(value=ast.expr()) if not isinstance(node.value, ast.Constant):
            yield ast.Return(ast.Constant(None))
        case ast.Expr(ast.Call() | ast.Await()) | ast.Assign([ast.Attribute() | ast.Subscript()]):
            yield ast.Pass()
        case ast.Raise() | ast.AugAssign() | ast.Delete() | ast.Continue() | ast.Break():
            yield ast.Pass()


def children(node: ast.AST) -> Iterator[tuple[str, int | None, ast.AST]]:
    """Yield the places below a node that may be changed."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "op", "ops", "ctx"):
            continue
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            is_docstring = isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)
            is_for_types = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
            # Words for people, and what is put into them.
            is_text = isinstance(child, (ast.FormattedValue, ast.JoinedStr))
            if isinstance(child, ast.AST) and not (is_docstring or is_for_types or is_text):
                yield name, index, child


def mutants_of(path: Path) -> list[Mutant]:
    """Make every mutant of a module."""
    module, found = str(path.relative_to(PACKAGE)), []
    tree = ast.parse(path.read_text())

    def put(parent: ast.AST, name: str, index: int | None, child: ast.AST) -> None:
        if index is None:
            setattr(parent, name, child)
        else:
            getattr(parent, name)[index] = child

    def head(statement: ast.AST) -> str:
        return ast.unparse(statement).partition("\n")[0]

    def visit(parent: ast.AST, statement: ast.AST, body: ast.AST) -> None:
        for name, index, child in children(parent):
            own = child if isinstance(child, ast.stmt) else statement
            inside = child if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)) else body
            is_test = name == "test" and not isinstance(child, (ast.Compare, ast.UnaryOp))
            negated = [ast.UnaryOp(ast.Not(), child)] if is_test else []  # type: ignore[arg-type]
            for other in (*negated, *variants(child)):
                ast.copy_location(other, child)
                before = head(own)
                put(parent, name, index, other)
                after = head(other if own is child else own)
                code = compile(ast.fix_missing_locations(tree), path, "exec")
                put(parent, name, index, child)
                if isinstance(own, (ast.FunctionDef, ast.AsyncFunctionDef)):
                    before, after = ast.unparse(child), f"{ast.unparse(other)} in {own.name}"
                line = getattr(child, "lineno", getattr(own, "lineno", 0))
                # What stands in a signature runs at import: the tests of the body tell.
                lines = range(body.lineno, (body.end_lineno or 0) + 1) if own is body else [line]  # type: ignore[attr-defined]
                found.append(Mutant(module, line, before, after, code, frozenset(lines)))
            visit(child, own, inside)

    visit(tree, tree, tree)
    return found


def read_listed() -> dict[tuple[str, str, str], str]:
    """Read the mutants that no test can kill, each with the reason."""
    listed = {}
    for block in LISTED.read_text().split("\n\n"):
        lines = [line.strip() for line in block.splitlines() if not line.startswith("#")]
        if lines:
            module, before, after, why = lines
            listed[module, before, after.removeprefix("-> ")] = why
    return listed


def tests_by_line() -> dict[str, dict[int, list[str]]]:
    """Read which tests run which line, by module."""
    data = coverage.CoverageData(str(ROOT / ".coverage"))
    data.read()
    files = [Path(file) for file in data.measured_files() if Path(file).is_relative_to(PACKAGE)]
    return {str(file.relative_to(PACKAGE)): data.contexts_by_lineno(str(file)) for file in files}


def mirrors(module: str, test: str) -> bool:
    """Tell whether a test stands in the file or folder named like a module."""
    name = module.removesuffix(".py").removesuffix("/onebox")
    return test.startswith((f"tests/test_{name}.py", f"tests/{name}/"))


class Chosen:
    """Have pytest run the chosen tests alone."""

    def __init__(self, tests: set[str]) -> None:
        self.tests = tests

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:  # noqa: D102
        items[:] = [i for i in items if i.nodeid in self.tests and not i.get_closest_marker("processes")]


@dataclass
class Trial:
    """Tests to run in a fork, with a mutant or with the module as it is."""

    module: str
    tests: set[str]
    limit: float
    mutant: Mutant | None = None

    def run(self) -> int:
        """Run the tests and return pytest's exit code."""
        import pytest

        if self.mutant:
            null = os.open(os.devnull, os.O_RDWR)
            for number in (0, 1, 2):
                os.dup2(null, number)
        get_code = SourceFileLoader.get_code

        def get_mutated_code(loader: SourceFileLoader, name: str) -> Any:
            is_mutated = self.mutant and Path(loader.path) == PACKAGE / self.module
            return self.mutant.code if self.mutant and is_mutated else get_code(loader, name)

        SourceFileLoader.get_code = get_mutated_code  # type: ignore[assignment,method-assign]
        options = ["-xq", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
        code = 5
        mirroring = {test for test in self.tests if mirrors(self.module, test)}
        for tests in filter(None, (mirroring, self.tests - mirroring)):
            files = sorted({test.partition("::")[0] for test in tests})
            code = int(pytest.main([*options, *files], plugins=[Chosen(tests)]))
            if code not in LIVES:
                break
        return code


def run_in_forks(trials: list[Trial], jobs: int) -> Iterator[tuple[Trial, int]]:
    """Yield each trial with its exit code, which is negative if it did not end in time."""
    waiting, running = deque(trials), dict[int, Trial]()
    while waiting or running:
        if waiting and len(running) < jobs:
            trial = waiting.popleft()
            if pid := os.fork():
                running[pid] = trial
                continue
            signal.alarm(int(trial.limit))
            code = 70
            try:
                code = trial.run()
            finally:
                os._exit(code)
        pid, status = os.wait()
        yield running.pop(pid), os.waitstatus_to_exitcode(status)


def main() -> int:
    """Try all mutants, or a sample of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("modules", nargs="*", help="such as paging.py or hooks/onebox.py; all by default")
    parser.add_argument("--sample", type=int, help="mutants a module, the same ones each time")
    options = parser.parse_args()
    os.chdir(ROOT)
    listed, by_line, began = read_listed(), tests_by_line(), time.monotonic()
    # What no mutant changes is imported once for all, as tests/conftest.py has it.
    sys.path.insert(0, str(ROOT / "tests"))
    imported = [importlib.import_module(name) for name in ("conftest", "airflow.triggers.base", "requests_mock")]
    for name in [n for n in sys.modules if n.startswith("airflow_provider_onebox.") and "sandbox" not in n]:
        del sys.modules[name]
    trials: list[Trial] = []
    counts: dict[str, Counter[str]] = {}
    bad, unused = [], dict(listed)
    names = options.modules or sorted(str(p.relative_to(PACKAGE)) for p in PACKAGE.rglob("*.py"))
    for name in [n for n in names if not n.startswith("sandbox/")]:
        mutants = mutants_of(PACKAGE / name)
        for mutant in mutants:
            unused.pop(mutant.key, None)
        if options.sample and len(mutants) > options.sample:
            mutants = random.Random(1).sample(mutants, options.sample)  # noqa: S311 - the same each time
        own = {test for tests in by_line[name].values() for test in tests if mirrors(name, test)}
        if mutants and not own:
            sys.exit(f"No test of {name} left its name in .coverage: run `make test` first.")
        start = time.monotonic()
        if not mutants:
            continue
        ((_, code),) = run_in_forks([Trial(name, own, SECONDS)], 1)
        if code:
            bad.append(f"{name}: its tests end with {code} without a mutant")
            continue
        limit = 10 + 3 * (time.monotonic() - start)
        counts[name] = Counter(mutants=len(mutants))
        for mutant in mutants:
            if mutant.key in listed:
                counts[name]["listed"] += 1
                continue
            tests = {test for line in mutant.lines for test in by_line[name].get(line, ()) if test}
            trials.append(Trial(name, tests or own, limit, mutant))
    survivors: list[Mutant] = []
    for trial, code in run_in_forks(trials, os.cpu_count() or 1):
        counts[trial.module]["surviving" if code in LIVES else "killed"] += 1
        survivors += [trial.mutant] if code in LIVES and trial.mutant else []
    for mutant in sorted(survivors, key=lambda m: (m.module, m.line)):
        sys.stdout.write(f"# line {mutant.line}\n{mutant.module}\n    {mutant.before}\n -> {mutant.after}\n\n")
    if not options.modules:
        bad += [f"{LISTED.name} lists what no mutant is any more: {' / '.join(key)}" for key in unused]
    del imported
    return report(counts, bad, time.monotonic() - began)


def report(counts: dict[str, Counter[str]], bad: list[str], seconds: float) -> int:
    """Print the table and tell whether all is well."""
    sys.stdout.write("\n| module | mutants | killed | listed | surviving | score |\n|---|--:|--:|--:|--:|--:|\n")
    for name, count in sorted(counts.items()):
        tried = count["killed"] + count["surviving"]
        score = count["killed"] / tried if tried else 1.0
        if score < MIN_KILLED:
            bad.append(f"{name} kills {score:.0%}, not {MIN_KILLED:.0%}")
        row = (name, count["mutants"], count["killed"], count["listed"], count["surviving"], f"{score:.1%}")
        sys.stdout.write(f"| {' | '.join(map(str, row))} |\n")
    total = sum((c for c in counts.values()), Counter())
    sys.stdout.write("".join(f"{line}\n" for line in bad))
    numbers = ", ".join(f"{total[kind]} {kind}" for kind in ("killed", "surviving", "listed"))
    sys.stdout.write(f"{numbers} in {seconds:.0f} s\n")
    return bool(bad)


if __name__ == "__main__":
    # The homes of the tests' Airflow: a fork that ends at once leaves its own behind.
    tempfile.tempdir = os.environ["TMPDIR"] = tempfile.mkdtemp(prefix="onebox-mutants-")
    try:
        code = main()
    finally:
        shutil.rmtree(tempfile.tempdir, ignore_errors=True)
    sys.exit(code)
