"""Build the wheel twice, in two folders with files of different ages, and compare the bytes."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
NEEDED = ("airflow_provider_onebox", "pyproject.toml", "README.md", "LICENSE")


def build(folder: Path, moment: int) -> bytes:
    """Build the wheel of a copy of the tree.

    :param folder: where the copy goes.
    :param moment: the age of its files, in seconds of Unix time.
    :return: the bytes of the wheel.
    """
    for name in NEEDED:
        source, target = ROOT / name, folder / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    for file in folder.rglob("*"):
        os.utime(file, (moment, moment))
    command = [sys.executable, "-m", "build", "--wheel", "--installer", "uv", "--outdir", str(folder / "dist"), "."]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    if done.returncode:
        sys.exit(f"The wheel can't be built:\n{done.stdout}{done.stderr}")
    (wheel,) = (folder / "dist").glob("*.whl")
    return wheel.read_bytes()


def main() -> None:
    """Compare the two, and with the wheel in a folder if one is named."""
    with tempfile.TemporaryDirectory(prefix="onebox-same-") as name:
        wheels = [build(Path(name) / "a", 1_600_000_000), build(Path(name) / "some" / "where", 1_700_000_000)]
    for folder in sys.argv[1:]:
        (wheel,) = Path(folder).glob("*.whl")
        wheels.append(wheel.read_bytes())
    digests = {hashlib.sha256(wheel).hexdigest() for wheel in wheels}
    if len(digests) > 1:
        sys.exit(f"The same source gave {len(digests)} different wheels.")
    sys.stdout.write(f"{len(wheels)} builds of the wheel are the same: {digests.pop()}\n")


if __name__ == "__main__":
    main()
