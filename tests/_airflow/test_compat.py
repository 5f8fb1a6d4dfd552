"""What differs between Airflow versions: each Airflow gets its own, the installed one for real."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from cryptography.fernet import Fernet
from sqlalchemy import Column, Integer, String, create_engine
from sqlalchemy.orm import Session, configure_mappers, declarative_base
from support.airflow_home import AIRFLOW_VERSION

from airflow_provider_onebox._airflow import compat

SECRET = "battery-staple-correct"


@pytest.fixture
def on_version(on_another_airflow, monkeypatch):
    """Run the module as on another version of Airflow."""

    def run(version, instead=()):
        monkeypatch.setattr("airflow.__version__", version)
        return on_another_airflow(compat, instead=instead)

    return run


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("2.11.2", (False, False, False, False, True)),
        ("3.1.8", (True, True, False, False, False)),
        ("3.2.2", (True, True, False, False, True)),
        ("3.3.2", (True, True, True, False, True)),
        ("3.4.0b2", (True, True, True, True, True)),
    ],
)
def test_constants(on_version, version, expected):
    """Each constant says what its Airflow has."""
    other = on_version(version)
    assert expected == (
        other.AIRFLOW_3,
        other.HAS_EVENT_TRIGGERS,
        other.HAS_RETRY_POLICIES,
        other.HAS_RESCHEDULE,
        other.SUPERVISOR_IS_THREAD_SAFE,
    )


def test_installed_version():
    """The version is that of the installed Airflow."""
    assert compat.AIRFLOW_VERSION == AIRFLOW_VERSION


@pytest.mark.parametrize(
    ("name", "since"),
    [
        ("BaseEventTrigger", (3, 0)),
        ("SharedStreamProducer", (3, 3)),
        ("RetryPolicy", (3, 3)),
        ("RetryDecision", (3, 3)),
    ],
)
def test_optional_classes(monkeypatch, name, since):
    """A class is Airflow's own from the version on that has it, and object before."""
    found = getattr(compat, name)
    assert (found.__module__.startswith("airflow.") and found.__name__ == name) is (since <= AIRFLOW_VERSION)
    assert (found is object) is (since > AIRFLOW_VERSION)
    monkeypatch.setattr(compat, "AIRFLOW_VERSION", (since[0], since[1] - 1))
    assert getattr(compat, name) is object
    with pytest.raises(AttributeError, match="NoSuchClass"):
        compat.NoSuchClass  # noqa: B018


@pytest.mark.parametrize("local_only", [True, False])
def test_masker_of_the_installed_airflow(local_only):
    """Either way, the secret is masked in this process."""
    compat.secret_masker(local_only)(SECRET)
    try:
        from airflow.sdk._shared.secrets_masker import redact
    except ImportError:
        from airflow.providers.common.compat.sdk import redact
    assert SECRET not in str(redact(f"a {SECRET} horse"))


@pytest.mark.parametrize(
    ("version", "local_only", "module"),
    [
        ("2.11.2", True, "airflow.utils.log.secrets_masker"),
        ("2.11.2", False, "airflow.utils.log.secrets_masker"),
        ("3.0.6", False, "airflow.sdk.log"),
        ("3.1.8", True, "airflow.sdk._shared.secrets_masker"),
        ("3.1.8", False, "airflow.sdk.log"),
        ("3.4.0", True, "airflow.sdk._shared.secrets_masker"),
    ],
)
def test_masker(on_version, version, local_only, module):
    """Each Airflow has its masker in another place."""
    masked = []
    on_version(version, {module: {"mask_secret": masked.append}}).secret_masker(local_only)(SECRET)
    assert masked == [SECRET]


def test_masker_of_airflow_3_0(on_version):
    """The function of 3.0 calls the supervisor too, so the set behind it is used."""
    masked = []
    masker = SimpleNamespace(add_mask=masked.append)
    module = {"airflow.sdk.execution_time.secrets_masker": {"_secrets_masker": lambda: masker}}
    on_version("3.0.6", module).secret_masker(True)(SECRET)
    assert masked == [SECRET]


@pytest.mark.parametrize(
    ("version", "module"),
    [("2.11.2", "airflow.models.crypto"), ("3.1.8", "airflow.models.crypto"), ("3.2.0", "airflow.sdk.crypto")],
)
def test_fernet(on_version, version, module):
    """Each Airflow has the key in another place."""
    fernet = Fernet(Fernet.generate_key())
    assert on_version(version, {module: {"get_fernet": lambda: fernet}}).get_fernet() is fernet


SAME = {"dag_id": "d", "task_id": "t"}


def test_count_instances():
    """Airflow 3 is asked by a call of the task instance; what is not asked for is left open."""
    asked = []
    ti = SimpleNamespace(get_ti_count=lambda **names: asked.append(names) or 2)
    assert compat.count_instances(ti, ("success",), **SAME) == 2
    assert compat.count_instances(ti, ("success",), **SAME, run_id="r", map_index=3) == 2
    same = {"dag_id": "d", "task_ids": ["t"], "states": ["success"]}
    assert asked == [
        {**same, "run_ids": None, "map_index": None},
        {**same, "run_ids": ["r"], "map_index": 3},
    ]


@pytest.fixture
def airflow_2(monkeypatch):
    """A database with the tables of Airflow 2 that tasks are let at, and the names by which they reach it."""
    base = declarative_base()

    class TaskInstance(base):
        __tablename__ = "task_instance"
        id = Column(Integer, primary_key=True)
        dag_id, task_id, run_id, map_index, state = (Column(kind) for kind in (String, String, String, Integer, String))

    class Variable(base):
        __tablename__ = "variable"
        key, val = Column(String, primary_key=True), Column(String)

    engine = create_engine("sqlite://")
    base.metadata.create_all(engine)
    configure_mappers()  # Those of the installed Airflow too, which imports what is replaced below.

    @contextmanager
    def create_session():
        with Session(engine) as session:
            yield session
            session.commit()

    models = SimpleNamespace(TaskInstance=TaskInstance, Variable=Variable, create_session=create_session)
    monkeypatch.setitem(sys.modules, "airflow.models", models)
    monkeypatch.setitem(sys.modules, "airflow.utils.session", models)
    yield models
    engine.dispose()


@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize("state", ["running", "restarting"])
def test_instances_on_airflow_2(airflow_2, state, counted):
    """Airflow 2 has no call for it, but lets a task ask the database."""
    task_instance = airflow_2.TaskInstance
    ti = SimpleNamespace(**SAME, run_id="r1", map_index=-1)
    other = {**SAME, "run_id": "r2", "map_index": 4, "state": "running"}
    harmless = [{"run_id": "r1"}, {"state": "success"}, {"task_id": "u"}, {"dag_id": "e"}]
    with airflow_2.create_session() as session:
        session.add_all([task_instance(**{**other, **one}) for one in harmless[not counted :]])
        session.commit()
        assert not compat.is_running_elsewhere(ti)
        session.add(task_instance(**{**other, "state": state}))
        session.commit()
        assert compat.is_running_elsewhere(ti)
        assert compat.count_instances(ti, ["success"], **SAME, run_id="r2", map_index=4) == 1
        assert compat.count_instances(ti, ["success"], **SAME, run_id="r2", map_index=5) == 0


def variable_key(one):
    """Return the key of an instance's Variable."""
    return "@".join(("w", one.dag_id, one.task_id, one.run_id, *([str(one.map_index)] if one.map_index >= 0 else [])))


@pytest.mark.parametrize(
    ("instance", "removed"),
    [
        ({"state": "success"}, True),
        ({"state": "skipped"}, True),
        ({"state": "success", "map_index": 12}, True),
        ({"state": "failed"}, False),
        ({"state": None}, False),
        ({"state": "success", "task_id": "u"}, False),
        ({"state": "success", "dag_id": "D"}, False),
        ({"state": "success", "run_id": "r_", "others": ["w@d@t@rx", "w@d@t@r_@0", "w@d_t@r_", "x"]}, True),
    ],
)
def test_variables_of_succeeded(airflow_2, instance, removed):
    """A Variable is removed once the success of its instance is committed, and no other is."""
    instance = {**SAME, "run_id": "r1", "map_index": -1, **instance}
    others = instance.pop("others", [])
    with airflow_2.create_session() as session:
        session.add(airflow_2.TaskInstance(**instance))
        key = variable_key(SimpleNamespace(**instance))
        session.add_all([airflow_2.Variable(key=name, val="x") for name in (key, *others)])
    compat.remove_variables_of_succeeded(SimpleNamespace(**SAME), "w@d@t@", variable_key)
    with airflow_2.create_session() as session:
        found = {name for (name,) in session.query(airflow_2.Variable.key)}
    assert found == {*others, *([] if removed else [key])}


def test_variable_of_a_later_try(airflow_2):
    """A Variable that a try changes after it was looked at is that try's, and stays."""
    with airflow_2.create_session() as session:
        session.add(airflow_2.TaskInstance(**SAME, run_id="r1", map_index=-1, state="success"))
        session.add(airflow_2.Variable(key="w@d@t@r1", val="x"))

    def key_of(one):
        with airflow_2.create_session() as session:
            session.get(airflow_2.Variable, variable_key(one)).val = "y"
        return variable_key(one)

    compat.remove_variables_of_succeeded(SimpleNamespace(**SAME), "w@d@t@", key_of)
    with airflow_2.create_session() as session:
        assert session.get(airflow_2.Variable, "w@d@t@r1").val == "y"


def test_failed_tasks(monkeypatch):
    """Airflow 3 is asked for the states of the run, Airflow 2 for its failed instances, and 3.0 for nothing."""
    states = {"r": {"b": "failed", "a": "failed", "c": "success"}}
    ti = SimpleNamespace(get_task_states=lambda dag_id, run_ids: states if (dag_id, run_ids) == ("d", ["r"]) else {})
    monkeypatch.setattr(compat, "AIRFLOW_VERSION", (3, 1))
    assert compat.failed_tasks(ti, "d", "r", None) == ["a", "b"]
    assert compat.failed_tasks(None, "d", "r", None) == []
    instances = [SimpleNamespace(task_id=name, map_index=index) for name, index in (("b", 0), ("a", -1))]
    run = SimpleNamespace(get_task_instances=lambda state: instances if state == "failed" else [])
    assert compat.failed_tasks(None, "d", "r", run) == ["a", "b[0]"]
    monkeypatch.setattr(compat, "AIRFLOW_VERSION", (3, 0))
    assert compat.failed_tasks(ti, "d", "r", None) == []
