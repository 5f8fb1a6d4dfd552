"""Each thing has one name, and what is written is plain English: `.vale/styles/Onebox` lists what to avoid."""

from __future__ import annotations

import io
import re
import tokenize
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
FILES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/**/*.md", "Makefile", "make/*.mk", "*/**/*.py")
    for path in ROOT.glob(pattern)
    if path.relative_to(ROOT).parts[0] not in ("build", "dist") and not path.relative_to(ROOT).parts[0].startswith(".")
)
CODE = re.compile(r"^```.*?^```$|``[^`]*``|`[^`\n]*`|\]\([^)]*\)|https?:\S+", re.DOTALL | re.MULTILINE)
STRINGS = {tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
LEADING = re.compile(r"^#+ ?|^[rbfu]*(?:'''|\"\"\"|['\"])|(?:'''|\"\"\"|['\"])$", re.IGNORECASE)


def rules():
    """Yield the words to avoid, each with what to write."""
    for file in sorted((ROOT / ".vale" / "styles" / "Onebox").glob("*.yml")):
        for avoid, instead in (yaml.safe_load(file.read_text(encoding="utf-8")).get("swap") or {}).items():
            yield re.compile(rf"\b(?:{avoid})\b", re.IGNORECASE), instead


RULES = list(rules())
ANY = re.compile("|".join(avoid.pattern for avoid, _ in RULES), re.IGNORECASE)


def prose(name, text):
    """Return what is written for people: of Python the comments and the strings with a space, and no code."""
    if name.endswith(".py"):
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        found = [t for t in tokens if t.type == tokenize.COMMENT or (t.type in STRINGS and " " in t.string)]
        text = "\n".join(LEADING.sub("", token.string) for token in found)
        text = re.sub(r"\{[^{}]*\}", "{}", text)
    return re.sub(r"\s+", " ", CODE.sub(" ", text))


def test_words():
    """Pages, docstrings, comments, log lines and errors keep to the list; code is left alone."""
    found = {}
    for name in FILES:
        text = prose(name, (ROOT / name).read_text(encoding="utf-8"))
        for match in ANY.finditer(text):
            (instead, *_) = (instead for avoid, instead in RULES if avoid.match(text, match.start()))
            found[name, text[max(0, match.start() - 30) : match.end() + 20]] = f"write: {instead}"
    assert found == {}


def test_words_are_found():
    """The test above finds a word in each kind of text, and none in code."""
    (word, _), *_ = RULES
    said = "sign" + " in"
    code = f'"""{said}."""\n# {said[:-3]}\n# in\nsign = "{said}" + f"{{1}} {said} {{said}}" + "sign_in"\n'
    assert word.findall(prose("a.py", code)) == [said] * 4
    page = f"{said} `{said}` [x]({said})\n```\n{said}\n```\n"
    assert word.findall(prose("a.md", page)) == [said]
