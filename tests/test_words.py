"""Each thing has one name, and what is written is plain English: `.vale/styles/Onebox` lists what to avoid."""

from __future__ import annotations

import io
import re
import tokenize
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
NOT_YET = (
    "airflow_provider_onebox/api/client.py",
    "airflow_provider_onebox/api/response.py",
    "airflow_provider_onebox/exceptions.py",
    "airflow_provider_onebox/files/atomic.py",
    "airflow_provider_onebox/files/attachments.py",
    "airflow_provider_onebox/operators/messages.py",
    "airflow_provider_onebox/operators/onebox.py",
    "airflow_provider_onebox/retry_policy.py",
    "benchmarks/__main__.py",
    "benchmarks/child.py",
    "benchmarks/setting.py",
    "docs/troubleshooting.md",
    "tests/_airflow/test_encryption.py",
    "tests/_airflow/test_hook_lineage.py",
    "tests/_airflow/test_masking.py",
    "tests/api/test_availability.py",
    "tests/api/test_client.py",
    "tests/api/test_listing.py",
    "tests/api/test_pagination.py",
    "tests/api/test_rate.py",
    "tests/api/test_response.py",
    "tests/api/test_service_hours.py",
    "tests/api/test_settings.py",
    "tests/api/test_transport.py",
    "tests/files/test_attachments.py",
    "tests/files/test_export_machine.py",
    "tests/files/test_reading.py",
    "tests/hooks/test_onebox.py",
    "tests/hooks/test_work.py",
    "tests/hostile/test_replies.py",
    "tests/notifications/test_onebox.py",
    "tests/operators/test_calls.py",
    "tests/operators/test_onebox.py",
    "tests/sensors/test_onebox.py",
    "tests/test_retry_policy.py",
    "tests/triggers/test_onebox.py",
    "tests/triggers/test_polling.py",
    "tests/writes/test_bulk.py",
)
"""Files that the list is not applied to yet."""

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


def prose(name, text):
    """Return what is written for people: of Python the comments and the strings with a space, and no code."""
    if name.endswith(".py"):
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        found = [t for t in tokens if t.type == tokenize.COMMENT or (t.type in STRINGS and " " in t.string)]
        text = "\n".join(LEADING.sub("", token.string) for token in found)
        text = re.sub(r"\{[^{}]*\}", "{}", text)
    return re.sub(r"\s+", " ", CODE.sub(" ", text))


@pytest.mark.parametrize("name", [name for name in FILES if name not in NOT_YET])
def test_words(name):
    """Pages, docstrings, comments, log lines and errors keep to the list; code is left alone."""
    text = prose(name, (ROOT / name).read_text(encoding="utf-8"))
    found = {
        text[max(0, match.start() - 30) : match.end() + 20]: f"write: {instead}"
        for avoid, instead in RULES
        for match in avoid.finditer(text)
    }
    assert found == {}


def test_words_are_found():
    """The test above finds a word in each kind of text, and none in code."""
    (word, _), *_ = RULES
    said = "sign" + " in"
    code = f'"""{said}."""\n# {said[:-3]}\n# in\nsign = "{said}" + f"{{1}} {said} {{said}}" + "sign_in"\n'
    assert word.findall(prose("a.py", code)) == [said] * 4
    page = f"{said} `{said}` [x]({said})\n```\n{said}\n```\n"
    assert word.findall(prose("a.md", page)) == [said]
