"""What reaches Airflow's masker, which each Airflow keeps elsewhere; the hook's tests show what is told, and when."""

from types import SimpleNamespace

import pytest

from airflow_provider_onebox import masking


@pytest.mark.parametrize("here_alone", [True, False])
def test_masker_of_airflow(here_alone):
    """Either way, what is told reaches the masker of this process."""
    masking._masker(here_alone)("battery-staple-correct")
    try:
        from airflow.sdk._shared.secrets_masker import redact
    except ImportError:
        from airflow.providers.common.compat.sdk import redact
    assert "battery-staple-correct" not in str(redact("a battery-staple-correct horse"))


def test_mask_reaches_airflow(monkeypatch):
    """What is masked here does not reach a log of Airflow."""
    masking.mask(["correct-horse-battery"])
    try:
        from airflow.sdk._shared.secrets_masker import redact
    except ImportError:
        from airflow.providers.common.compat.sdk import redact
    assert "correct-horse-battery" not in str(redact("a correct-horse-battery staple"))


@pytest.mark.parametrize("here_alone", [True, False])
def test_masker_of_airflow_2(on_another_airflow, here_alone):
    """Airflow 2 keeps its masker elsewhere, and has one alone."""
    told = []
    masker = {"airflow.utils.log.secrets_masker": {"mask_secret": told.append}}
    newer = ["airflow.sdk.log", "airflow.sdk._shared.secrets_masker", "airflow.sdk.execution_time.secrets_masker"]
    older = on_another_airflow(masking, without=newer, instead=masker)
    older._masker(here_alone)("correct-horse-battery")
    assert told == ["correct-horse-battery"]


def test_masker_of_airflow_3_0(on_another_airflow):
    """The masker of 3.0 tells the supervisor by itself, so the set behind it is told."""
    told = []
    masker = SimpleNamespace(add_mask=told.append)
    instead = {"airflow.sdk.execution_time.secrets_masker": {"_secrets_masker": lambda: masker}}
    older = on_another_airflow(masking, without=["airflow.sdk._shared.secrets_masker"], instead=instead)
    older._masker(True)("correct-horse-battery")
    assert told == ["correct-horse-battery"]
