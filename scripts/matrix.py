"""Run the test suite against every supported Airflow, with the built wheel, and print one table.

Each cell is a separate environment with the wheel, the pins of ``constraints/`` and a copy of the tree
without the package, so that the tests can import nothing but what is installed. Cells are named as in the
table: ``3.0/3.12``; arguments choose some of them.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import distributions
from pathlib import Path

import psutil
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "airflow_provider_onebox"
# uv is either what the development environment holds or what is on the path.
UV = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}") or "uv"
SECONDS = 3600
"""The longest that the suite of one cell may take on a busy machine."""

# What is not run everywhere, and the options of pytest that leave it out.
GROUPS = {
    "docs": ["--ignore=tests/test_docs.py", "--ignore=tests/test_house.py", "--ignore=tests/test_words.py"],
    "lineage": ["--ignore=tests/_airflow/test_lineage.py"],
    "agents": ["--ignore=tests/hooks/test_agents.py"],
    "frames": ["--ignore=tests/files/test_frames.py"],
    "sandbox": ["--ignore=tests/sandbox"],
    "hostile": [f"--ignore=tests/hostile/test_{name}.py" for name in ("chaos", "replies", "bulk_chaos")],
    "models": [
        f"--ignore=tests/{name}.py" for name in ("api/test_pagination", "api/test_rate", "files/test_export_machine")
    ],
    "harness": ["--ignore=tests/support"],
    "dags": ["--ignore=tests/test_example_dags.py"],
    "processes": ["-m", "not processes"],
}
# The sandbox, the models and the tests of hostile responses don't depend on Airflow: they run with the lowest versions,
# and with the newest in `make test`. Whole DAGs and schedulers take long and depend on Airflow, not on Python: once for
# each version. The documentation and the tests' own helpers come from the tree, not from the wheel. Only the
# constraints of `make test` pin OpenLineage's provider.
ALWAYS = ("docs", "lineage", "agents", "frames", "harness")
NEWEST = (*ALWAYS, "sandbox", "hostile", "models")
LOWEST = (*ALWAYS, "processes")


@dataclass
class Cell:
    """One environment and its result."""

    constraints: str
    python: str
    left_out: tuple[str, ...]
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("passed", "skipped", "failed"), 0))
    seconds: float = 0
    problems: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The name in the table and on the command line."""
        return f"{self.constraints}/{self.python}"

    @property
    def is_good(self) -> bool:
        """Whether nothing failed."""
        return not self.counts["failed"] and not self.problems


CELLS = (
    Cell("3.4", "3.13", (*ALWAYS, "hostile", "models")),
    Cell("3.2", "3.13", NEWEST),
    Cell("3.1", "3.13", NEWEST),
    Cell("3.0", "3.12", NEWEST),
    Cell("2.11", "3.12", NEWEST),
    # The oldest and the newest Python, with the newest Airflow whose whole suite runs on another one (make test); the
    # oldest with the oldest Airflow too.
    Cell("3.3", "3.10", (*NEWEST, "dags", "processes")),
    Cell("3.3", "3.14", (*ALWAYS, "dags", "processes")),
    Cell("lowest", "3.10", LOWEST),
)
"""The longest ones first, so that those that run at a time end together."""

CELL = "ONEBOX_MATRIX_CELL"
"""The variable by which the processes of a cell are found: its folder."""


def end(folder: Path) -> None:
    """Kill every process that the suites below a folder have started, in whatever session."""
    for process in psutil.process_iter(["environ"]):
        if (process.info["environ"] or {}).get(CELL, "").startswith(str(folder)):
            with suppress(psutil.NoSuchProcess):
                process.kill()


def run(*command: str | Path, **options: object) -> str:
    """Run a command and return its output; its errors end this program."""
    done = subprocess.run(  # type: ignore[call-overload]
        [*map(str, command)], capture_output=True, text=True, timeout=SECONDS, **options
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))[:200]} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return str(done.stdout)


@cache
def environment() -> dict[str, str]:
    """Return the environment of every command, without the caller's variables that could change a test."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("AIRFLOW_", "PYTEST_", "PYTHON"))}
    kept |= {"UV_PYTHON_DOWNLOADS": "never"}
    if shutil.which("pyenv"):
        # Its commands find only the selected versions.
        kept["PYENV_VERSION"] = ":".join(v for v in run("pyenv", "versions", "--bare").split() if v.startswith("3."))
    return kept


def check_lowest(wheel: Path, file: Path) -> None:
    """Check that the pins of the lowest cell are the lower bounds of the wheel; uv doesn't."""
    (built,) = distributions(path=[str(wheel)])
    pins = dict(line.split("==") for line in file.read_text().splitlines())
    for required in map(Requirement, built.requires or ()):
        bounds = [Version(bound.version) for bound in required.specifier if bound.operator == ">="]
        if bounds != [Version(pins[required.name])]:
            sys.exit(
                f"{required.name}: {file.name} has {pins[required.name]}, pyproject.toml admits {required.specifier}"
            )


def copy_tree(folder: Path) -> Path:
    """Copy all files that git tracks or would track, except the package."""
    for name in run("git", "ls-files", "-co", "--exclude-standard", cwd=ROOT).splitlines():
        if not name.startswith(f"{PACKAGE}/") and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def try_cell(cell: Cell, wheel: Path, folder: Path) -> str:
    """Fill the environment of a cell and run the suite in it; return the suite's output."""
    start = time.monotonic()
    binary = folder / "venv" / "bin" / "python"
    run(UV, "venv", "--quiet", "--no-project", "--python", cell.python, folder / "venv", env=environment())
    pins = ROOT / "constraints" / f"{cell.constraints}.txt"
    install = (UV, "pip", "install", "--quiet", "--python", binary, "--constraints", pins)
    group = f"{ROOT / 'pyproject.toml'}:test"
    run(*install, f"{wheel}[sandbox,parquet]", "--group", group, env=environment(), cwd=folder)
    tree = copy_tree(folder / "tree")
    origin = run(binary, "-c", f"import {PACKAGE}; print({PACKAGE}.__file__)", cwd=tree, env=environment())
    if not origin.startswith(str(folder / "venv")):
        sys.exit(f"{cell.name} would test {origin}")
    report = folder / "report.xml"
    options = ["-q", "-p", "no:cacheprovider", f"--junitxml={report}", f"--basetemp={folder / 'tmp'}"]
    options += [option for group in cell.left_out for option in GROUPS[group]]
    with (folder / "output.txt").open("w+") as output:
        suite = subprocess.Popen(
            [binary, "-m", "pytest", *options],
            cwd=tree,
            env={**environment(), CELL: str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = suite.wait(SECONDS)
        except subprocess.TimeoutExpired:
            end(folder)
            code = suite.wait()
            cell.problems.append(f"not over after {SECONDS} s")
        output.seek(0)
        printed = output.read()
    read_report(cell, report)
    if code and not cell.counts["failed"]:
        cell.problems.append(f"pytest ended with {code}")
    cell.seconds = time.monotonic() - start
    return printed


def read_report(cell: Cell, report: Path) -> None:
    """Count what the suite did; nothing may be skipped but for the version of Airflow."""
    if not report.exists():
        return
    for case in ElementTree.parse(report).iter("testcase"):  # noqa: S314 - pytest has just written it
        skipped = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            cell.counts["failed"] += 1
        elif skipped is not None:
            cell.counts["skipped"] += 1
            reason = skipped.get("message", "")
            if "Airflow" not in reason:
                cell.problems.append(f"{case.get('name')} was skipped, and the reason names no Airflow: {reason}")
        else:
            cell.counts["passed"] += 1
    if not cell.counts["passed"]:
        cell.problems.append("nothing passed")


def table(cells: list[Cell]) -> str:
    """Return the results, one line a cell."""
    lines = ["| Airflow | Python | passed | skipped | failed | seconds | left out |", "|---|---|--:|--:|--:|--:|---|"]
    for cell in cells:
        pins = (ROOT / "constraints" / f"{cell.constraints}.txt").read_text()
        airflow = re.search(r"^apache-airflow==(\S+)", pins, re.MULTILINE)
        name = f"{airflow[1] if airflow else '?'}{', lowest of all' * (cell.constraints == 'lowest')}"
        counts = " | ".join(str(cell.counts[kind]) for kind in ("passed", "skipped", "failed"))
        lines.append(f"| {name} | {cell.python} | {counts} | {cell.seconds:.0f} | {', '.join(cell.left_out)} |")
    return "\n".join(lines)


def try_all(cells: list[Cell], folder: Path, jobs: int) -> None:
    """Build the wheel and try it in every cell, several at a time."""
    folders = {cell.name: folder / cell.name.replace("/", "-") for cell in cells}
    run(UV, "build", "--quiet", "--wheel", "--out-dir", folder, ROOT, env=environment())
    (wheel,) = folder.glob("*.whl")
    check_lowest(wheel, ROOT / "constraints" / "lowest.txt")

    def work(cell: Cell) -> tuple[Cell, str]:
        try:
            printed = try_cell(cell, wheel, folders[cell.name])
        except SystemExit as problem:
            # The other cells go on; to stop here would mean to wait for them and lose their results.
            printed = str(problem)
            cell.problems.append("it could not be made")
        shutil.rmtree(folders[cell.name], ignore_errors=True)
        return cell, printed

    with ThreadPoolExecutor(jobs) as pool:
        try:
            for done in as_completed([pool.submit(work, cell) for cell in cells]):
                cell, printed = done.result()
                if not cell.is_good:
                    sys.stdout.write(f"\n== {cell.name}\n{printed}\n")
                last = printed.rstrip().rpartition("\n")[2]
                sys.stdout.write(f"{cell.name}: {', '.join([last, *cell.problems])}\n")
                sys.stdout.flush()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            end(folder)
            raise


def main() -> int:
    """Run the cells that were asked for, all by default."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("cells", nargs="*", metavar="AIRFLOW/PYTHON", help="such as 3.3/3.10, or 3.0")
    # A cell spends a quarter of its time waiting for Airflow's loops.
    jobs = (os.cpu_count() or 1) + 1
    parser.add_argument("--jobs", type=int, default=jobs, help="cells at a time (default %(default)s here)")
    options = parser.parse_args()
    cells = [c for c in CELLS if not options.cells or {c.name, c.constraints} & set(options.cells)]
    if not cells:
        parser.error(f"no such cell; there are {', '.join(cell.name for cell in CELLS)}")
    with tempfile.TemporaryDirectory(prefix="airflow-matrix-") as folder:
        try_all(cells, Path(folder).resolve(), options.jobs)
    sys.stdout.write(f"\n{table(cells)}\n\n")
    bad = [cell.name for cell in cells if not cell.is_good]
    if bad:
        sys.stdout.write(f"Failed: {', '.join(bad)}\n")
    total = {kind: sum(cell.counts[kind] for cell in cells) for kind in ("passed", "failed", "skipped")}
    sys.stdout.write(", ".join(f"{number} {kind}" for kind, number in total.items()) + "\n")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
