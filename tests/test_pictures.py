"""The drawings in the documentation can be read: on a phone, on light pages and on dark ones."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

PICTURES = sorted((Path(__file__).parent.parent / "docs" / "images").glob("*.svg"))
COLUMN = 358
"""Pixels between the margins of a phone's page, which is 390 wide."""
SVG = "{http://www.w3.org/2000/svg}"


def look(element, name, default=""):
    """Return a property, whether it is an attribute or part of the style."""
    style = re.search(rf"(?:^|; ?){name}: ?([^;]+)", element.get("style", ""))
    return style[1] if style else element.get(name, default)


def colour(text, opacity="1", below=(1.0, 1.0, 1.0)):
    """Return red, green and blue from 0 to 1, laid over another colour."""
    assert re.fullmatch("#[0-9a-f]{6}", text), text
    parts = [int(text[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    return tuple(float(opacity) * top + (1 - float(opacity)) * under for top, under in zip(parts, below, strict=True))


def luminance(rgb):
    """Return the relative luminance, as the Web Content Accessibility Guidelines define it."""
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in rgb)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one, other):
    """Return the contrast of two colours, from 1 to 21."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def boxes(root):
    """Yield left, top, right, bottom and fill of every filled rectangle, the last on top."""
    for rect in filter(lambda rect: rect.get("fill"), root.iter(f"{SVG}rect")):
        x, y = (float(rect.get(name, "0")) for name in ("x", "y"))
        fill = colour(rect.get("fill"), rect.get("fill-opacity", "1"))
        yield x, y, x + float(rect.get("width")), y + float(rect.get("height")), fill


@pytest.mark.parametrize("file", PICTURES, ids=lambda file: file.stem)
def test_legible(file):
    """Each text has a contrast of 4.5 to what is behind it, and ten pixels on a phone; the ground is white."""
    root = ET.parse(file).getroot()  # noqa: S314 - our own file
    *_, width, height = map(float, root.get("viewBox").split())
    drawn = list(boxes(root))
    ground = drawn[0] if drawn else None
    if ground:
        assert ground == (0, 0, width, height, (1, 1, 1))
    else:  # matplotlib draws a path
        assert look(next(root.iter(f"{SVG}path")), "fill") == "#ffffff"
    texts = list(root.iter(f"{SVG}text"))
    assert texts
    for text in texts:
        size = float(look(text, "font-size", root.get("font-size", "")).removesuffix("px"))
        assert size * min(1, COLUMN / width) >= 10, text.text
        x, y = float(text.get("x")), float(text.get("y"))
        behind = [fill for left, top, right, bottom, fill in drawn if left <= x <= right and top <= y <= bottom]
        assert contrast(colour(look(text, "fill")), behind[-1] if behind else (1, 1, 1)) >= 4.5, text.text


def test_contrast():
    """The contrast is that of the guidelines."""
    assert contrast(colour("#000000"), colour("#ffffff")) == pytest.approx(21)
    assert contrast(colour("#777777"), colour("#ffffff")) == pytest.approx(4.48, abs=0.01)
    assert colour("#000000", "0.25") == (0.75, 0.75, 0.75)
