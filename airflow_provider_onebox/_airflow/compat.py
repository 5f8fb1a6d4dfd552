"""What differs between the supported Airflow versions. No other module of the package asks which one is installed."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from airflow import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from airflow.sdk import RetryDecision, RetryPolicy
    from airflow.triggers.base import BaseEventTrigger
    from airflow.triggers.shared_stream import SharedStreamProducer

__all__ = ["BaseEventTrigger", "RetryDecision", "RetryPolicy", "SharedStreamProducer"]

AIRFLOW_VERSION = tuple(map(int, __version__.split(".")[:2]))
"""The installed Airflow, such as ``(3, 3)``."""

AIRFLOW_3 = AIRFLOW_VERSION >= (3, 0)
"""Tasks have no access to the metadata database; they ask Airflow's API through a supervisor process."""

HAS_EVENT_TRIGGERS = AIRFLOW_3
"""Assets can be watched by a trigger."""

HAS_RETRY_POLICIES = AIRFLOW_VERSION >= (3, 3)
"""Tasks have ``retry_policy``."""

HAS_RESCHEDULE = AIRFLOW_VERSION >= (3, 4)
"""A retry policy can wait without using up a retry."""

SUPERVISOR_IS_THREAD_SAFE = AIRFLOW_VERSION not in ((3, 0), (3, 1))
"""Several threads can call the supervisor at once; otherwise it mixes up their responses."""

_OPTIONAL = {
    "BaseEventTrigger": ("airflow.triggers.base", (3, 0)),
    "SharedStreamProducer": ("airflow.triggers.shared_stream", (3, 3)),
    "RetryPolicy": ("airflow.sdk", (3, 3)),
    "RetryDecision": ("airflow.sdk", (3, 3)),
}


def __getattr__(name: str) -> Any:
    """Return a class that only some Airflow versions have; imported when asked for, because most modules need none.

    :param name: the class's name.
    :return: the class; ``object`` where Airflow has none, so that it can be a base class.
    :raises AttributeError: if no such name is known.
    """
    if name not in _OPTIONAL:
        raise AttributeError(name)
    module, since = _OPTIONAL[name]
    return getattr(import_module(module), name) if since <= AIRFLOW_VERSION else object


def get_fernet() -> Any:
    """Return the deployment's Fernet.

    :return: Airflow's object; without a key, one that encrypts nothing and has a false ``is_encrypted``.
    """
    module = "airflow.sdk.crypto" if AIRFLOW_VERSION >= (3, 2) else "airflow.models.crypto"
    return import_module(module).get_fernet()


def secret_masker(local_only: bool) -> Callable[..., object]:
    """Return the function that masks a secret in Airflow's logs.

    :param local_only: mask it in this process only, and leave its supervisor alone.
    :return: the function; it takes the secret.
    """
    if not AIRFLOW_3:
        masker: Callable[..., object] = import_module("airflow.utils.log.secrets_masker").mask_secret
    elif not local_only:
        masker = import_module("airflow.sdk.log").mask_secret
    elif AIRFLOW_VERSION == (3, 0):
        masker = import_module("airflow.sdk.execution_time.secrets_masker")._secrets_masker().add_mask
    else:
        masker = import_module("airflow.sdk._shared.secrets_masker").mask_secret
    return masker


def count_instances(
    ti: Any,
    states: Sequence[str],
    *,
    dag_id: str,
    task_id: str,
    run_id: str | None = None,
    map_index: int | None = None,
) -> int:
    """Count the instances of a task that are in certain states.

    :param ti: the task instance that asks.
    :param states: the states.
    :param dag_id: the DAG.
    :param task_id: the task.
    :param run_id: the run; ``None`` for all.
    :param map_index: the map index, -1 for a task that is not mapped; ``None`` for all.
    :return: how many there are.
    """
    if hasattr(ti, "get_ti_count"):
        runs = None if run_id is None else [run_id]
        return int(
            ti.get_ti_count(dag_id=dag_id, task_ids=[task_id], run_ids=runs, map_index=map_index, states=[*states])
        )
    # Airflow 2, where a task has access to the database.
    from airflow.models import TaskInstance
    from airflow.utils.session import create_session

    wanted = {"dag_id": dag_id, "task_id": task_id, "run_id": run_id, "map_index": map_index}
    with create_session() as session:
        query: Any = session.query(TaskInstance)
        query = query.filter_by(**{name: value for name, value in wanted.items() if value is not None})
        return int(query.filter(TaskInstance.state.in_(states)).count())


def is_running_elsewhere(ti: Any) -> bool:
    """Check whether another run has an instance of the same task that is running.

    :param ti: the task instance.
    :return: whether there is one, of whichever map index.
    """
    same, states = {"dag_id": ti.dag_id, "task_id": ti.task_id}, ("running", "restarting")
    # Not "more than one": `airflow tasks test`, or a process that was superseded, does not count itself.
    return count_instances(ti, states, **same) > count_instances(ti, states, **same, run_id=ti.run_id)


def remove_variables_of_succeeded(ti: Any, prefix: str, key_of: Callable[[Any], str]) -> None:
    """Remove the Variables of a task's instances whose success, or skip, is committed; for Airflow 2.

    :param ti: an instance of the task.
    :param prefix: what the keys of the task's Variables begin with.
    :param key_of: the key for an instance, given its ``dag_id``, ``task_id``, ``run_id`` and ``map_index``.
    """
    from airflow.models import TaskInstance, Variable
    from airflow.utils.session import create_session

    variables, instances = Variable.__table__.c, TaskInstance.__table__.c
    with create_session() as session:
        # Before the states: a Variable that a try changes after this is of a later try, and is kept.
        rows = session.query(variables.key, variables.val).filter(variables.key.startswith(prefix, autoescape=True))
        texts: dict[str, str] = dict(rows)
        names = [key.removeprefix(prefix) for key in texts]
        succeeded = session.query(instances.dag_id, instances.task_id, instances.run_id, instances.map_index).filter(
            instances.dag_id == ti.dag_id,
            instances.task_id == ti.task_id,
            # A mapped instance's name ends with @ and its index.
            instances.run_id.in_([*names, *(name.rpartition("@")[0] for name in names)]),
            instances.state.in_(("success", "skipped")),
        )
        for key in texts.keys() & set(map(key_of, succeeded)):
            session.execute(Variable.__table__.delete().where(variables.key == key, variables.val == texts[key]))


def failed_tasks(ti: Any, dag_id: str, run_id: str, dag_run: Any) -> list[str]:
    """List the failed tasks of a run, for a callback of its DAG.

    :param ti: a task instance of the run, if the callback has one.
    :param dag_id: the DAG.
    :param run_id: the run.
    :param dag_run: the run, as the callback has it.
    :return: the sorted names of the tasks; none where Airflow can't be asked.
    """
    if hasattr(dag_run, "get_task_instances"):  # Airflow 2
        failed = dag_run.get_task_instances(state="failed")
        return sorted(f"{one.task_id}[{one.map_index}]" if one.map_index >= 0 else one.task_id for one in failed)
    # The DAG processor of 3.0 never responds to this question.
    if ti is None or AIRFLOW_VERSION == (3, 0):
        return []
    states = ti.get_task_states(dag_id=dag_id, run_ids=[run_id])[run_id]
    return sorted(task for task, state in states.items() if state == "failed")
