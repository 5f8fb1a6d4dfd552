"""Loaded by every Python of the soak: reports how many strings Airflow's secrets masker holds in this process.

Nothing outside of a process can see that. All else is measured from there.
"""

import contextlib
import os
import sys
import threading
import time
from pathlib import Path

FOLDER = Path(os.environ["ONEBOX_SOAK_PROBE"])
SECONDS = 1.0


def masked() -> int:
    """Return how many strings are masked; Airflow 3 has one masker for itself and one for its SDK."""
    maskers = {}
    for name, module in list(sys.modules.items()):
        if name.endswith("secrets_masker") and (get := vars(module).get("_secrets_masker")):
            # No masker yet, or one that is being made.
            with contextlib.suppress(Exception):
                maskers[id(get())] = len(get().patterns)
    return sum(maskers.values())


def report() -> None:
    """Write the number down again and again."""
    file = FOLDER / str(os.getpid())
    while True:
        time.sleep(SECONDS)
        with contextlib.suppress(OSError):
            file.with_suffix(".new").write_text(str(masked()))
            file.with_suffix(".new").replace(file)


def start() -> None:
    """Begin to report; a thread does not outlive a fork, so each child has its own."""
    threading.Thread(target=report, name="soak-probe", daemon=True).start()


os.register_at_fork(after_in_child=start)
start()
