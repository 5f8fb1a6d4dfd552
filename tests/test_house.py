"""The parts of the package and their imports; import-linter checks their direction in `make check`."""

import ast
import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("grimp")
SCRIPT = Path(__file__).parent.parent / "scripts" / "house.py"


@pytest.fixture(scope="module")
def house():
    """The script that draws the picture."""
    spec = importlib.util.spec_from_file_location("house", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_floors(house):
    """The parts lie on eight floors at most."""
    imports, _ = house.read_parts()
    assert max(house.find_floors(imports).values()) < 8


def test_circle(house):
    """A circle is an error, not an endless search."""
    with pytest.raises(ValueError, match=r"circle of imports: \['a', 'b'\]"):
        house.find_floors({"a": {"b"}, "b": {"a"}, "c": set()})


def test_arrows(house):
    """An import that another path implies has no arrow."""
    assert house.find_arrows({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == [("a", "b"), ("b", "c")]


def test_picture(house):
    """The picture in CONTRIBUTING shows the imports of today; `make house` draws it."""
    assert house.PICTURE.read_text() == house.draw()


def blocks(node):
    """Yield each list of statements below a node, those of functions within functions too."""
    for name in ("body", "orelse", "finalbody", "handlers", "cases"):
        block = getattr(node, name, [])
        yield block
        for item in block:
            yield from blocks(item)


def test_statements():
    """Each test says what it proves, and no statement follows one that leaves its block.

    Python drops such a statement, so neither coverage nor the linter sees it.
    """
    leaving = (ast.Return, ast.Raise, ast.Break, ast.Continue)
    dead, silent = [], []
    for folder in ("airflow_provider_onebox", "benchmarks", "example_dags", "scripts", "tests"):
        for file in (SCRIPT.parents[1] / folder).rglob("*.py"):
            for block in blocks(ast.parse(file.read_text())):
                dead += [f"{file}:{item.lineno}" for item in block[:-1] if isinstance(item, leaving)]
                tests = [item for item in block if isinstance(item, ast.FunctionDef) and item.name.startswith("test_")]
                if file.name.startswith("test_"):
                    silent += [f"{file}:{test.lineno}" for test in tests if not ast.get_docstring(test)]
    assert (dead, silent) == ([], [])


def test_blocks():
    """A statement is found in each kind of block."""
    inner = "if a:\n for b in c:\n  try: x\n  except E: x\n  else: x\n  finally: x\n else: x\nelse: x"
    found = list(blocks(ast.parse(f"def f():\n async def g(): x\nmatch a:\n case 1: x\n{inner}")))
    assert sum(isinstance(item, ast.Expr) for block in found for item in block) == 8
