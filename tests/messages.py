"""The messages that errors of the package can carry, read from its source."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import airflow_provider_onebox

PACKAGE = Path(airflow_provider_onebox.__file__).parent
GAP = "…"


def template(node: ast.expr) -> str | None:
    """Return a text with a gap for each value in it; ``None`` if it holds no words of its own."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else GAP for part in node.values)
    return None


def messages(package: Path = PACKAGE) -> dict[str, str]:
    """Return each message that is given to an error of the family, directly or by a helper, and where it stands."""
    found = {}
    for file in sorted(package.rglob("*.py")):
        if "sandbox" in file.parts:
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if not re.fullmatch(r"Onebox\w*Error|_error", called):
                continue
            words = [text for text in map(template, node.args) if text and " " in text.strip(GAP)]
            if words and re.search("[a-z]{2}", max(words, key=len)):
                found[max(words, key=len)] = f"{file.name}:{node.lineno}"
    return found


def fits(fragment: str, message: str) -> bool:
    """Tell whether a message holds the pieces of a fragment, in their order."""
    pieces = map(re.escape, filter(None, (piece.strip() for piece in fragment.split(GAP))))
    return re.search(".*".join(pieces), message, re.DOTALL) is not None
