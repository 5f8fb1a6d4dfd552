"""DAGs without Onebox: what the harness of the tests proves itself with."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

try:
    from airflow.providers.standard.triggers.temporal import TimeDeltaTrigger
    from airflow.sdk import BaseOperator, dag, task
except ImportError:
    from airflow.decorators import dag, task
    from airflow.models.baseoperator import BaseOperator
    from airflow.triggers.temporal import TimeDeltaTrigger


class Deferred(BaseOperator):
    """Sleep in the triggerer for a second."""

    def execute(self, context: Any) -> None:
        """Defer."""
        self.defer(trigger=TimeDeltaTrigger(timedelta(seconds=6)), method_name="resume")

    def resume(self, context: Any, event: Any) -> str:
        """Say that the trigger fired."""
        return "resumed"


@dag(schedule=None)
def passing() -> None:
    """Pass an XCom on."""

    @task
    def first() -> dict[str, list[int]]:
        return {"numbers": [1, 2]}

    @task
    def second(given: dict[str, list[int]]) -> int:
        print("given:", given)  # noqa: T201
        return len(given["numbers"])

    second(first())


@dag(schedule=None)
def every_kind() -> None:
    """Hold a task that passes, one that fails, a mapped one and a deferred one."""

    @task
    def plain() -> list[int]:
        return [1, 2]

    @task
    def failing() -> None:
        raise ValueError("as it should")

    @task
    def mapped(number: int) -> int:
        return number * 10

    mapped.expand(number=plain())
    failing()
    Deferred(task_id="deferred")


passing()
every_kind()
