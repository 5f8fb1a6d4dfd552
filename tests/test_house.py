"""The parts of the package and their imports; import-linter checks their direction in `make check`."""

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
