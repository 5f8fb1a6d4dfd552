"""Sealed tokens: ciphertext for readers of XComs, a token for the hook, and never plain text in disguise."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from cryptography.fernet import Fernet

from airflow_provider_onebox import seal as seal_module
from airflow_provider_onebox.exceptions import OneboxConfigError
from airflow_provider_onebox.hooks.onebox import OneboxHook
from airflow_provider_onebox.operators.onebox import OneboxAuthenticateOperator, OneboxListOperator
from airflow_provider_onebox.seal import PREFIX, seal, unseal

try:
    from airflow.sdk import crypto
except ImportError:
    from airflow.models import crypto

OLD, NEW = Fernet.generate_key().decode(), Fernet.generate_key().decode()


@pytest.fixture
def use_key(monkeypatch):
    """Give this process the deployment's Fernet key, as a worker has it."""

    def use(key):
        monkeypatch.setenv("AIRFLOW__CORE__FERNET_KEY", key)
        monkeypatch.setattr(crypto, "_fernet", None, raising=False)
        getattr(crypto.get_fernet, "cache_clear", lambda: None)()

    yield use
    getattr(crypto.get_fernet, "cache_clear", lambda: None)()


def test_round_trip(use_key):
    """What is sealed can be opened, and does not show what is in it."""
    use_key(NEW)
    sealed = seal("the-token")
    assert sealed.startswith(PREFIX)
    assert "the-token" not in sealed
    assert unseal(sealed) == "the-token"
    assert unseal("plain") == "plain"


def test_rotation(use_key):
    """While keys are rotated, what the old one has sealed still opens, and the new one seals."""
    use_key(OLD)
    sealed = seal("the-token")
    use_key(f"{NEW},{OLD}")
    assert unseal(sealed) == "the-token"
    resealed = seal("the-token")
    use_key(NEW)
    assert unseal(resealed) == "the-token"
    with pytest.raises(OneboxConfigError, match=r"a different .core. fernet_key"):
        unseal(sealed)


@pytest.mark.parametrize("broken", [PREFIX, f"{PREFIX}abc", f"{PREFIX}the-token"])
def test_broken_seal(use_key, broken):
    """A seal that was cut is told as such, and its content is not repeated."""
    use_key(NEW)
    with pytest.raises(OneboxConfigError, match="can't be opened") as caught:
        unseal(broken)
    assert "the-token" not in str(caught.value)


def test_empty_key(use_key, connected):
    """Without a key nothing is sealed, nothing is opened, and nobody logs in."""
    use_key("")
    context = {"ti": SimpleNamespace(xcom_push=lambda **_: None)}
    with pytest.raises(OneboxConfigError, match="fernet_key is empty"):
        OneboxAuthenticateOperator(task_id="t", seal=True).execute(context)
    with pytest.raises(OneboxConfigError, match="fernet_key is empty"):
        OneboxHook(token=f"{PREFIX}abc").get_token()
    assert not connected.state.requests


def test_older_airflow(on_another_airflow):
    """Before Airflow 3.2 the key is found where the models have it."""
    fernet = Fernet(NEW)
    fernet.is_encrypted = True
    models = {"airflow.models.crypto": {"get_fernet": lambda: fernet}}
    older = on_another_airflow(seal_module, without=["airflow.sdk.crypto"], instead=models)
    assert older.unseal(older.seal("the-token")) == "the-token"
    assert Fernet(NEW).decrypt(older.seal("the-token").removeprefix(PREFIX).encode()) == b"the-token"


def test_published_sealed_and_opened_downstream(use_key, connected):
    """The operator publishes ciphertext; hook and operators open it by themselves."""
    use_key(NEW)
    pushed = {}
    context = {"ti": SimpleNamespace(xcom_push=lambda key, value: pushed.update({key: value}))}
    sealed = OneboxAuthenticateOperator(task_id="t", seal=True).execute(context)
    assert sealed.startswith(PREFIX)
    assert set(pushed) == {"expires_at", "site_id"}
    token = OneboxHook(token=sealed).get_token()
    assert token == unseal(sealed)
    assert OneboxListOperator(task_id="u", resource="ticketrz", token=sealed, max_records=1).execute(context)
    assert connected.state.logins == 1


def test_sealed_by_an_earlier_release(use_key):
    """A token that waits in an XCom while the provider is upgraded opens."""
    use_key(NEW)
    assert unseal("onebox-sealed:" + Fernet(NEW).encrypt(b"the-token").decode()) == "the-token"
