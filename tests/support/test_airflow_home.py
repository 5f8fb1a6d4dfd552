"""What goes wrong in the tests' Airflow is reported; the tests of real DAGs show the rest of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.airflow_home import AirflowHome, AirflowHomeError

if TYPE_CHECKING:
    from collections.abc import Callable


def test_unknown_dag(airflow_home: Callable[..., AirflowHome]) -> None:
    """A DAG that was not run is an error, not an empty result."""
    with pytest.raises(AirflowHomeError, match="No run of absent"):
        airflow_home().test_dag("absent")


@pytest.mark.processes
def test_a_component_that_ends(airflow_home: Callable[..., AirflowHome]) -> None:
    """A component that ends at once is reported with the end of its log, and nothing is left."""
    home = airflow_home()
    home.env["AIRFLOW__CORE__EXECUTOR"] = "NoSuchExecutor"
    with pytest.raises(AirflowHomeError, match=r"(?s)scheduler ended\n--- scheduler\n.*NoSuchExecutor"):
        home.start("triggerer", "scheduler")
    assert home.stop() == []
    assert home.alive() == []
