"""Run commands of Airflow one after the other in one process, which imports Airflow once; `AirflowHome` runs this."""

from __future__ import annotations

import json
import sys
import traceback

MARK = "\x1eairflow-home command\n"


def main(commands: list[str]) -> None:
    """Run each command, a JSON list of words, with a mark in the output before it."""
    from airflow.__main__ import main as airflow

    for command in map(json.loads, commands):
        print(end=MARK, flush=True)  # noqa: T201
        sys.argv = ["airflow", *command]
        try:
            airflow()  # type: ignore[no-untyped-call]
        except SystemExit as end:
            if end.code:
                print(end, flush=True)  # noqa: T201
        except Exception:  # noqa: BLE001 - the next command has to run; the caller misses the result of this one
            traceback.print_exc()


if __name__ == "__main__":
    sys.path.pop(0)  # the tests are not what the DAGs may import
    main(sys.argv[1:])
