"""The code in the README and on the pages, as it has to be written for the installed Airflow."""

from __future__ import annotations

import re
from pathlib import Path

from support.airflow_home import AIRFLOW_3

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {
    file.relative_to(ROOT).as_posix(): file.read_text(encoding="utf-8")
    for file in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
}
"""The README and the documentation's pages, by path."""

NEWER = "from airflow.sdk import dag, task"


def blocks(language: str, text: str = README) -> list[str]:
    """Return the code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


MESSAGES = re.findall(r"^`(.+)`\n: ", PAGES["docs/troubleshooting.md"], re.MULTILINE)
"""The messages that have an entry in troubleshooting; … stands for the parts that vary."""


def anchor(message: str) -> str:
    """Return the anchor of a message's entry on the site."""
    return re.sub("[^a-z0-9]+", "-", message.lower()).strip("-")


def python_blocks(text: str = README) -> list[str]:
    """Return the Python blocks; on Airflow 2 with the import that the README names for it."""
    (older,) = re.findall(r"On Airflow 2\.11, write `(.*?)`", README)
    return [block if AIRFLOW_3 else block.replace(NEWER, older) for block in blocks("python", text)]
