"""The harness proves itself, without Onebox."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from airflow_home import AIRFLOW_VERSION, AirflowHome, AirflowHomeError

if TYPE_CHECKING:
    from collections.abc import Callable

PLAIN = Path(__file__).parent / "dags" / "plain.py"
COMPONENTS = ("api-server", "scheduler", "dag-processor", "triggerer")


def test_two_dags_in_one_process(airflow_home: Callable[..., AirflowHome]) -> None:
    """A passing and a failing DAG, each with its own states, XComs and output."""
    home = airflow_home([PLAIN])
    runs = home.test_dags(["passing", "every_kind"])

    passing = runs["passing"]
    assert passing.state == "success"
    assert passing.tasks == {("first", -1): "success", ("second", -1): "success"}
    assert passing.xcoms["first", -1, "return_value"] == {"numbers": [1, 2]}
    assert passing.xcoms["second", -1, "return_value"] == 2
    assert "given: {'numbers': [1, 2]}" in passing.output
    assert "as it should" not in passing.output

    mixed = runs["every_kind"]
    assert mixed.state == "failed"
    assert mixed.tasks["failing", -1] == "failed"
    assert mixed.tasks["deferred", -1] == "success"
    # The dag.test() of Airflow 3.0 keeps the traceback to itself.
    assert ("ValueError: as it should" in mixed.output) is (AIRFLOW_VERSION != (3, 0))


def test_unknown_dag(airflow_home: Callable[..., AirflowHome]) -> None:
    """A DAG that was not run is an error, not an empty result."""
    with pytest.raises(AirflowHomeError, match="No run of absent"):
        airflow_home([PLAIN]).test_dag("absent")


@pytest.mark.processes
def test_real_processes(airflow_home: Callable[..., AirflowHome]) -> None:
    """Every kind of task through scheduler and triggerer; afterwards nothing is left."""
    home = airflow_home([PLAIN])
    home.start(*COMPONENTS)
    run_id = home.trigger("every_kind")
    assert home.wait("every_kind", run_id) == "failed"
    assert home.task_states("every_kind", run_id) == {
        ("plain", -1): "success",
        ("failing", -1): "failed",
        ("mapped", 0): "success",
        ("mapped", 1): "success",
        ("deferred", -1): "success",
    }
    xcoms = home.xcoms("every_kind", run_id)
    assert xcoms["plain", -1, "return_value"] == [1, 2]
    assert xcoms["mapped", 1, "return_value"] == 20
    assert xcoms["deferred", -1, "return_value"] == "resumed"
    assert "ValueError" in home.task_log("every_kind", run_id, "failing")
    assert home.import_errors() == {}
    assert len(home.alive()) >= len(home.processes)

    assert home.stop() == []
    assert home.alive() == []
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", home.port), timeout=5).close()


@pytest.mark.processes
def test_a_component_that_ends(airflow_home: Callable[..., AirflowHome]) -> None:
    """A component that ends at once is reported with the end of its log, and nothing is left."""
    home = airflow_home()
    home.env["AIRFLOW__CORE__EXECUTOR"] = "NoSuchExecutor"
    with pytest.raises(AirflowHomeError, match=r"(?s)scheduler ended\n--- scheduler\n.*NoSuchExecutor"):
        home.start("triggerer", "scheduler")
    assert home.stop() == []
    assert home.alive() == []
