"""Test DAGs of the home one after the other in one process, which imports Airflow once; `AirflowHome` runs this."""

from __future__ import annotations

import sys
import traceback

MARK = "\x1eairflow-home dag "


def main(dags: list[str]) -> None:
    """Serialise the DAGs of the home, then test each ``dag_id=conf``, with a mark in the output before each step."""
    from airflow.__main__ import main as airflow

    # Airflow 3.0 tests no DAG with assets that was not serialised before.
    tests = [dag.partition("=") for dag in dags]
    for command in [["reserialize"], *(["test", dag_id, "--conf", conf] for dag_id, _, conf in tests)]:
        print(f"{MARK}{command[1] if command[1:] else command[0]}", flush=True)  # noqa: T201
        sys.argv = ["airflow", "dags", *command]
        try:
            airflow()  # type: ignore[no-untyped-call]
        except SystemExit as end:
            print(end, flush=True)  # noqa: T201
        except Exception:  # noqa: BLE001 - the next DAG has to run; the caller misses the run of this one
            traceback.print_exc()


if __name__ == "__main__":
    sys.path.pop(0)  # the tests are not what the DAGs may import
    main(sys.argv[1:])
