"""A token encrypted with the deployment's Fernet key, so that readers of XComs see ciphertext."""

from __future__ import annotations

from typing import Any

from airflow_provider_onebox._airflow import compat
from airflow_provider_onebox.exceptions import OneboxConfigError

PREFIX = "onebox-encrypted:"
"""What a encrypted token begins with."""


def encrypt(token: str) -> str:
    """Encrypt a token.

    :param token: the token.
    :return: a string that only a holder of the deployment's Fernet key can open.
    :raises OneboxConfigError: if the deployment has no Fernet key.
    """
    return PREFIX + str(get_fernet().encrypt(token.encode()).decode())


def decrypt(token: str) -> str:
    """Open a encrypted token; leave another one as it is.

    :param token: a token from upstream, encrypted or not.
    :return: the token.
    :raises OneboxConfigError: if this process does not have the key that it was encrypted with.
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
    """Get the deployment's Fernet, to fail early where there is none.

    :return: Airflow's Fernet, which opens what any of the deployment's keys has encrypted.
    :raises OneboxConfigError: if the key is empty: Airflow would then hand out plain text in disguise.
    """
    fernet = compat.get_fernet()
    if not fernet.is_encrypted:
        raise OneboxConfigError(
            "A token can't be encrypted or decrypted here: [core] fernet_key is empty. Set it on every worker (see "
            "'Fernet' in Airflow's documentation), or don't pass the token on."
        )
    return fernet
