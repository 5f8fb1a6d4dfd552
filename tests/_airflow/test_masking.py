"""What reaches Airflow's masker; the hook's tests show which secrets are masked, and when."""

import asyncio
import os
import warnings

import pytest

from airflow_provider_onebox._airflow import masking


@pytest.fixture
def masked_by(monkeypatch):
    """Collect what is masked in this process alone, and what its supervisor knows too."""
    masked_by = {True: [], False: []}
    monkeypatch.setattr(masking, "secret_masker", lambda local_only: masked_by[local_only].append)
    monkeypatch.setattr(masking, "_unmasked", set())
    monkeypatch.setattr(masking, "_masked_tokens", 0)  # Tests before may have used up those that are masked.
    masking._masked.clear()
    yield masked_by
    masking._masked.clear()


def test_supervisor_learns_it_later(masked_by):
    """A token that was first masked where the supervisor can't be called is masked there at the next opportunity."""

    async def hand_out():
        masking.mask_token("correct-horse")

    asyncio.run(hand_out())
    assert masked_by == {True: ["correct-horse"], False: []}
    masking.mask_token("correct-horse")
    assert masked_by == {True: ["correct-horse"], False: ["correct-horse"]}


def test_short_secrets(masked_by):
    """A secret of four characters is not masked, one of five is: Airflow 2 would punch holes into every log."""
    masking.mask(["abcd", "efghi"])
    assert "efghi" in masked_by[False]
    assert "abcd" not in masked_by[False]


def test_too_many_tokens(masked_by, caplog):
    """From the first token that is not masked, a warning says so, once."""
    for n in range(masking.MAX_MASKED_TOKENS + 3):
        masking.mask_token(f"token-{n}")
        assert caplog.text.count("which return none") == (n >= masking.MAX_MASKED_TOKENS)
    assert masked_by[False] == [f"token-{n}" for n in range(masking.MAX_MASKED_TOKENS)]


def test_supervisor_of_a_child(masked_by):
    """A forked process has another supervisor, which learns again what the parent's knows."""
    masking.mask(["correct-horse"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # this process has threads
        child = os.fork()
    if not child:
        masked_by[False].clear()
        masking.mask(["correct-horse"])
        os._exit("correct-horse" not in masked_by[False])
    assert os.waitpid(child, 0)[1] == 0
