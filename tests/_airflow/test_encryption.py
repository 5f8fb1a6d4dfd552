"""Encrypted tokens: ciphertext for readers of XComs, a token for the hook, and never plain text in disguise."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from cryptography.fernet import Fernet

from airflow_provider_onebox._airflow.encryption import PREFIX, decrypt, encrypt
from airflow_provider_onebox.exceptions import OneboxConfigError
from airflow_provider_onebox.hooks.onebox import OneboxHook
from airflow_provider_onebox.operators.onebox import OneboxAuthenticateOperator, OneboxListOperator

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
    """What is encrypted can be decrypted, and does not show what is in it."""
    use_key(NEW)
    encrypted = encrypt("the-token")
    assert encrypted.startswith(PREFIX)
    assert "the-token" not in encrypted
    assert decrypt(encrypted) == "the-token"
    assert decrypt("plain") == "plain"


def test_rotation(use_key):
    """While keys are rotated, what the old one has encrypted is still decrypted, and the new one encrypts."""
    use_key(OLD)
    encrypted = encrypt("the-token")
    use_key(f"{NEW},{OLD}")
    assert decrypt(encrypted) == "the-token"
    encrypted_anew = encrypt("the-token")
    use_key(NEW)
    assert decrypt(encrypted_anew) == "the-token"
    with pytest.raises(OneboxConfigError, match=r"a different .core. fernet_key"):
        decrypt(encrypted)


@pytest.mark.parametrize("broken", [PREFIX, f"{PREFIX}the-token"])
def test_broken(use_key, broken):
    """An encrypted token that was cut off is named as such, and its content is not repeated."""
    use_key(NEW)
    with pytest.raises(OneboxConfigError, match="can't be decrypted") as caught:
        decrypt(broken)
    assert "the-token" not in str(caught.value)


def test_empty_key(use_key, connected):
    """Without a key nothing is encrypted or decrypted, and nobody logs in."""
    use_key("")
    context = {"ti": SimpleNamespace(xcom_push=lambda **_: None)}
    with pytest.raises(OneboxConfigError, match="fernet_key is empty"):
        OneboxAuthenticateOperator(task_id="t", encrypt=True).execute(context)
    with pytest.raises(OneboxConfigError, match="fernet_key is empty"):
        OneboxHook(token=f"{PREFIX}abc").get_token()
    assert not connected.state.requests


def test_published_and_used_downstream(use_key, connected):
    """The operator publishes ciphertext; hook and operators decrypt it by themselves."""
    use_key(NEW)
    pushed = {}
    context = {"ti": SimpleNamespace(xcom_push=lambda key, value: pushed.update({key: value}))}
    encrypted = OneboxAuthenticateOperator(task_id="t", encrypt=True).execute(context)
    assert encrypted.startswith(PREFIX)
    assert set(pushed) == {"expires_at", "site_id"}
    token = OneboxHook(token=encrypted).get_token()
    assert token == decrypt(encrypted)
    assert OneboxListOperator(task_id="u", resource="ticketrz", token=encrypted, max_records=1).execute(context)
    assert connected.state.logins == 1


def test_prefix(use_key):
    """An encrypted token is what every version writes: a prefix, and what Fernet makes of the token."""
    use_key(NEW)
    assert decrypt("onebox-encrypted:" + Fernet(NEW).encrypt(b"the-token").decode()) == "the-token"
