"""A token encrypted with the deployment's Fernet key, so that readers of XComs see ciphertext."""

from __future__ import annotations

from typing import Any

from airflow_provider_onebox._airflow import compat
from airflow_provider_onebox.exceptions import OneboxConfigError

PREFIX = "onebox-encrypted:"
"""The prefix of an encrypted token."""


def encrypt(token: str) -> str:
    """Encrypt a token.

    :param token: the token.
    :return: a string that only a process with the deployment's Fernet key can decrypt.
    :raises OneboxConfigError: if the deployment has no Fernet key.
    """
    return PREFIX + str(get_fernet().encrypt(token.encode()).decode())


def decrypt(token: str) -> str:
    """Decrypt an encrypted token; return any other as it is.

    :param token: an upstream token, encrypted or not.
    :return: the token.
    :raises OneboxConfigError: if this process does not have the key with which it was encrypted.
    """
    if not token.startswith(PREFIX):
        return token
    from cryptography.fernet import InvalidToken

    try:
        return str(get_fernet().decrypt(token.removeprefix(PREFIX).encode()).decode())
    except InvalidToken:
        raise OneboxConfigError(
            "The token can't be decrypted: it was encrypted with a different [core] fernet_key, or it was cut off. "
            "Give all workers the same key; when you rotate keys, keep the old one second in the list."
        ) from None


def get_fernet() -> Any:
    """Return the deployment's Fernet; also called in advance, to fail early where there is no key.

    :return: Airflow's Fernet, which decrypts with each of the deployment's keys.
    :raises OneboxConfigError: if the key is empty: Airflow's object would then return plain text.
    """
    fernet = compat.get_fernet()
    if not fernet.is_encrypted:
        raise OneboxConfigError(
            "A token can't be encrypted or decrypted here: [core] fernet_key is empty. Set it on every worker (see "
            "'Fernet' in Airflow's documentation), or don't pass the token on."
        )
    return fernet
