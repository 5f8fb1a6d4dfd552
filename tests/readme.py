"""The README's code, as it has to be written for the installed Airflow."""

from __future__ import annotations

import re
from pathlib import Path

from airflow_home import AIRFLOW_3

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
NEWER = "from airflow.sdk import dag, task"


def blocks(language: str) -> list[str]:
    """Return the code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def python_blocks() -> list[str]:
    """Return the Python blocks; on Airflow 2 with the import that the README names for it."""
    (older,) = re.findall(r"On Airflow 2\.11 the first line is `(.*?)`", README)
    return [block if AIRFLOW_3 else block.replace(NEWER, older) for block in blocks("python")]
