"""Every message that an error of the package can carry has an entry in the documentation."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

from support.readme import MESSAGES, anchor

import airflow_provider_onebox

PACKAGE = Path(airflow_provider_onebox.__file__).parent
GAP = "…"
RAISED = r"Onebox\w*Error|_error|_environment_error|TypeError|AirflowOptionalProviderFeatureException"


def template(node: ast.expr) -> str | None:
    """Return a text with a gap for each value in it; ``None`` if it holds no other words."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else GAP for part in node.values)
    return None


NODES = [
    (file, node)
    for file in sorted(PACKAGE.rglob("*.py"))
    if "sandbox" not in file.parts
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    if isinstance(node, ast.Call | ast.Constant | ast.JoinedStr)
]


def messages() -> dict[str, str]:
    """Return each message that is given to an error, directly or by a helper, and where it is."""
    found = {}
    for file, node in NODES:
        if not isinstance(node, ast.Call):
            continue
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        # In api, a ValueError is for the caller, which turns it into one of the family.
        if not re.fullmatch(RAISED if "api" in file.parts else f"{RAISED}|ValueError", called):
            continue
        words = [text for text in map(template, node.args) if text and " " in text.strip(GAP)]
        if words and re.search("[a-z]{2}", max(words, key=len)):
            found[max(words, key=len)] = f"{file.name}:{node.lineno}"
    return found


def texts() -> set[str]:
    """Return every text in the source, with a gap for each value in it."""
    return {text for _, node in NODES if (text := template(node)) and " " in text}


@functools.cache
def pattern(fragment: str) -> re.Pattern[str]:
    """Return what finds the pieces of a fragment, in their order."""
    pieces = map(re.escape, filter(None, (piece.strip() for piece in fragment.split(GAP))))
    return re.compile(".*".join(pieces), re.DOTALL)


def fits(fragment: str, message: str) -> bool:
    """Return whether a message holds the pieces of a fragment, in their order."""
    return pattern(fragment).search(message) is not None


def test_troubleshooting():
    """Every message that an error can carry has an entry, and every entry a message."""
    found = messages()
    assert len(found) > 50
    assert {where: text for text, where in found.items() if not any(fits(entry, text) for entry in MESSAGES)} == {}
    said = texts()
    assert [entry for entry in MESSAGES if not any(fits(entry, text) for text in said)] == []
    assert not fits("is … and …", "and is")


def test_anchors():
    """No two messages have the same anchor on the site."""
    anchors = [anchor(message) for message in MESSAGES]
    assert sorted(set(anchors)) == sorted(anchors)
    assert all(anchors)
