"""What reaches Airflow's masker, which each Airflow keeps elsewhere; the hook's tests show what is told, and when."""

import asyncio
import os
import warnings
from types import SimpleNamespace

import pytest

from airflow_provider_onebox._airflow import masking


@pytest.mark.parametrize("local_only", [True, False])
def test_masker_of_airflow(local_only):
    """Either way, what is told reaches the masker of this process."""
    masking._masker(local_only)("battery-staple-correct")
    try:
        from airflow.sdk._shared.secrets_masker import redact
    except ImportError:
        from airflow.providers.common.compat.sdk import redact
    assert "battery-staple-correct" not in str(redact("a battery-staple-correct horse"))


@pytest.fixture
def told(monkeypatch):
    """Collect what is masked in this process alone, and what its supervisor is told of too."""
    told = {True: [], False: []}
    monkeypatch.setattr(masking, "_masker", lambda local_only: told[local_only].append)
    monkeypatch.setattr(masking, "_unmasked", set())
    monkeypatch.setattr(masking, "_masked_tokens", 0)  # Tests before may have handed out all that are masked.
    masking._masked.clear()
    yield told
    masking._masked.clear()


def test_supervisor_is_told_at_the_next_opportunity(told):
    """A token that was first handed out where the supervisor can't be told is told when it is handed out again."""

    async def hand_out():
        masking.mask_token("correct-horse")

    asyncio.run(hand_out())
    assert told == {True: ["correct-horse"], False: []}
    masking.mask_token("correct-horse")
    assert told == {True: ["correct-horse"], False: ["correct-horse"]}


def test_short_secrets(told):
    """A secret of four characters is not masked, one of five is: Airflow 2 would punch holes into every log."""
    masking.mask(["abcd", "efghi"])
    assert "efghi" in told[False]
    assert "abcd" not in told[False]


def test_too_many_tokens(told, caplog):
    """From the first token that is not masked, a warning tells so, once."""
    for n in range(masking.MAX_MASKED_TOKENS + 3):
        masking.mask_token(f"token-{n}")
        assert caplog.text.count("which hand out none") == (n >= masking.MAX_MASKED_TOKENS)
    assert told[False] == [f"token-{n}" for n in range(masking.MAX_MASKED_TOKENS)]


def test_supervisor_of_a_child(told):
    """A forked process has a supervisor of its own, which is told anew of what the parent's knows."""
    masking.mask(["correct-horse"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # this process has threads
        child = os.fork()
    if not child:
        told[False].clear()
        masking.mask(["correct-horse"])
        os._exit("correct-horse" not in told[False])
    assert os.waitpid(child, 0)[1] == 0


def test_mask_reaches_airflow(monkeypatch):
    """What is masked here does not reach a log of Airflow."""
    masking.mask(["correct-horse-battery"])
    try:
        from airflow.sdk._shared.secrets_masker import redact
    except ImportError:
        from airflow.providers.common.compat.sdk import redact
    assert "correct-horse-battery" not in str(redact("a correct-horse-battery staple"))


@pytest.mark.parametrize("local_only", [True, False])
def test_masker_of_airflow_2(on_another_airflow, local_only):
    """Airflow 2 keeps its masker elsewhere, and has one alone."""
    told = []
    masker = {"airflow.utils.log.secrets_masker": {"mask_secret": told.append}}
    newer = ["airflow.sdk.log", "airflow.sdk._shared.secrets_masker", "airflow.sdk.execution_time.secrets_masker"]
    older = on_another_airflow(masking, without=newer, instead=masker)
    older._masker(local_only)("correct-horse-battery")
    assert told == ["correct-horse-battery"]


def test_masker_of_airflow_3_0(on_another_airflow):
    """The masker of 3.0 tells the supervisor by itself, so the set behind it is told."""
    told = []
    masker = SimpleNamespace(add_mask=told.append)
    instead = {"airflow.sdk.execution_time.secrets_masker": {"_secrets_masker": lambda: masker}}
    older = on_another_airflow(masking, without=["airflow.sdk._shared.secrets_masker"], instead=instead)
    older._masker(True)("correct-horse-battery")
    assert told == ["correct-horse-battery"]
