"""Draw the package's parts and their imports as docs/images/house.svg, the picture in CONTRIBUTING."""

from __future__ import annotations

import textwrap
from collections import defaultdict
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "airflow_provider_onebox"
PICTURE = ROOT / "docs" / "images" / "house.svg"
BLUE, GREEN, INK = "#0550ae", "#116329", "#424a53"
COLOURS = {"api": GREEN, "files": GREEN, "writes": GREEN, "_airflow": "#6639ba", "sandbox": "#7d4e00"}
COLOURS |= {"exceptions": INK, "provider_info": INK}
WIDTH, GAP, LINE, CHARACTER = 440, 10, 17, 7.4
TITLE = "The parts of the package and what they import: all arrows lead downwards"

Graph = dict[str, set[str]]


def read_parts() -> tuple[Graph, dict[str, list[str]]]:
    """Read what each part imports, for types too, and which modules it holds.

    :return: the parts that a part imports, and the modules of a part.
    """
    graph = grimp.build_graph(PACKAGE, cache_dir=None)
    imports, modules = defaultdict[str, set[str]](set), defaultdict[str, list[str]](list)
    for module in sorted(graph.modules - {PACKAGE}):
        _, part, *rest = module.split(".")
        imports[part] |= {name.split(".")[1] for name in graph.find_modules_directly_imported_by(module)} - {part}
        modules[part] += [name for name in rest if not name.startswith("__")]
    return imports, modules


def find_floors(imports: Graph) -> dict[str, int]:
    """Return each part's floor: one above the highest part that it imports.

    :param imports: the parts that a part imports; without circles.
    :return: floors by part, the lowest is 0.
    """
    floors: dict[str, int] = {}
    while len(floors) < len(imports):
        ready = {part for part in imports if part not in floors and imports[part] <= floors.keys()}
        if not ready:
            raise ValueError(f"A circle of imports: {sorted(imports.keys() - floors)}")
        floors |= {part: 1 + max((floors[name] for name in imports[part]), default=-1) for part in ready}
    return floors


def find_arrows(imports: Graph) -> list[tuple[str, str]]:
    """Return the imports that no other path of imports implies.

    :param imports: the parts that a part imports; without circles.
    :return: pairs of a part and one that it imports.
    """

    def below(part: str) -> set[str]:
        return imports[part].union(*map(below, imports[part]))

    return [(part, name) for part in imports for name in sorted(imports[part].difference(*map(below, imports[part])))]


def draw() -> str:
    """Draw the picture: a row for each floor, the parts without imports in the highest.

    :return: the SVG.
    """
    imports, modules = read_parts()
    floors, arrows = find_floors(imports), find_arrows(imports)
    floors |= dict.fromkeys(imports.keys() - {part for arrow in arrows for part in arrow}, max(floors.values()))
    boxes, lines, y = {}, [], GAP
    for floor in range(max(floors.values()), -1, -1):
        parts = sorted((part for part in floors if floors[part] == floor), key=lambda part: (part not in COLOURS, part))
        width = (WIDTH - GAP) / len(parts) - GAP
        texts = [[part, *textwrap.wrap(", ".join(modules[part]), int((width - 16) / CHARACTER))] for part in parts]
        height = 14 + LINE * max(map(len, texts))
        for number, (part, text) in enumerate(zip(parts, texts, strict=True)):
            x, colour = GAP + number * (width + GAP), COLOURS.get(part, BLUE)
            boxes[part] = (x + width / 2, y, y + height)
            lines.append(
                f'<rect x="{x:.0f}" y="{y}" width="{width:.0f}" height="{height}" rx="6" fill="{colour}" '
                f'fill-opacity="0.12" stroke="{colour}"/>'
            )
            for row, line in enumerate(text):
                style = f'fill="{INK}"' if row else f'fill="{colour}" font-weight="bold"'
                place = f'x="{x + width / 2:.0f}" y="{y + 21 + LINE * row}" text-anchor="middle"'
                lines.append(f"<text {place} {style}>{line}</text>")
        y += height + 2 * GAP
    for part, name in arrows:
        (start, _, bottom), (end, top, _) = boxes[part], boxes[name]
        place = f'x1="{start:.0f}" y1="{bottom}" x2="{end:.0f}" y2="{top - 2}"'
        lines.append(f'<line {place} stroke="{INK}" stroke-width="1.5" marker-end="url(#a)"/>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y - GAP}" width="{WIDTH}" height="{y - GAP}" '
        f'font-family="system-ui, sans-serif" font-size="13" role="img"><title>{TITLE}</title><defs><marker id="a" '
        'viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0 8 4 0 8z" fill="{INK}"/></marker></defs>\n<rect width="{WIDTH}" height="{y - GAP}" rx="8" '
        'fill="#ffffff"/>\n' + "\n".join(lines) + "\n</svg>\n"
    )


if __name__ == "__main__":
    PICTURE.write_text(draw())
