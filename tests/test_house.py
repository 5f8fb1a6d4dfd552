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


def test_no_dead_statement():
    """No statement follows one that leaves its block: Python drops it, so neither coverage nor the linter sees it."""
    leaving = (ast.Return, ast.Raise, ast.Break, ast.Continue)
    dead = []
    for folder in ("airflow_provider_onebox", "benchmarks", "example_dags", "scripts", "tests"):
        for file in (SCRIPT.parents[1] / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                for block in vars(node).values():
                    if isinstance(block, list):
                        dead += [f"{file}:{item.lineno}" for item in block[:-1] if isinstance(item, leaving)]
    assert dead == []
