"""Certificates for the tests of the REST API."""

from __future__ import annotations

import ssl

import pytest
import trustme


@pytest.fixture(scope="module")
def ca(tmp_path_factory):
    """A CA of the tests' own, and the path of its certificate."""
    authority = trustme.CA()
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return authority, str(path)


@pytest.fixture(scope="module")
def tls(ca):
    """A server's TLS context with a certificate for 127.0.0.1."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca[0].issue_cert("127.0.0.1", "dev.example").configure_cert(context)
    return context
