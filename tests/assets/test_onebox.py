"""The URI of assets, and what Airflow makes of it."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest
from airflow.providers.common.compat.sdk import Asset
from support.airflow_home import AIRFLOW_3

from airflow_provider_onebox.assets.onebox import create_asset, sanitize_uri

# For the first asset Airflow loads all providers, and those of older versions warn of what they use themselves.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize(
    ("given", "uri"),
    [
        ("onebox://Cloud.Onebox.co.ID:443/169/ticketrz/", "onebox://cloud.onebox.co.id/169/ticketrz"),
        ("onebox://127.0.0.1:8080/169/_my_list2_", "onebox://127.0.0.1:8080/169/_my_list2_"),
        ("onebox://[::1]:8080/169/message", "onebox://[::1]:8080/169/message"),
    ],
)
def test_uri(given, uri):
    """One resource has one URI, whatever its spelling; Airflow asks for it."""
    assert sanitize_uri(urlsplit(given)).geturl() == uri
    assert Asset(uri=given).uri == uri


@pytest.mark.parametrize(
    "uri",
    [
        "onebox://cloud.onebox.co.id/169",
        "onebox://cloud.onebox.co.id/169/ticketrz/5",
        "onebox://cloud.onebox.co.id/site/ticketrz",
        "onebox://cloud.onebox.co.id/\u0661/ticketrz",
        "onebox://cloud.onebox.co.id/169/ticket-rz",
        "onebox:///169/ticketrz",
        "onebox://\u00f6.example/169/ticketrz",
        "onebox://sesame@cloud.onebox.co.id/169/ticketrz",
        "onebox://agent:sesame@cloud.onebox.co.id/169/ticketrz",
        "onebox://cloud.onebox.co.id/169/ticketrz?token=sesame",
        "onebox://cloud.onebox.co.id/169/ticketrz#sesame",
    ],
)
def test_bad_uri(uri):
    """What names no resource is rejected, and so is what can hold a secret, which is not repeated."""
    with pytest.raises(ValueError, match=r"The URI of a Onebox asset is onebox://<host>/<site>/<resource>") as caught:
        sanitize_uri(urlsplit(uri))
    assert "sesame" not in str(caught.value)


def test_bad_uri_in_airflow():
    """Airflow 3 takes no such asset; Airflow 2 warns."""
    with pytest.raises(ValueError, match="Onebox") if AIRFLOW_3 else pytest.warns(UserWarning, match="Onebox"):
        Asset(uri="onebox://cloud.onebox.co.id/site/ticketrz")


@pytest.mark.parametrize("host", ["cloud.onebox.co.id", "https://cloud.onebox.co.id/base"])
def test_factory(host):
    """The factory takes the host, or the connection's Onebox URL."""
    asset = create_asset(host=host, site_id=169, resource="ticketrz", extra={"team": "sales"})
    assert (asset.uri, asset.extra) == ("onebox://cloud.onebox.co.id/169/ticketrz", {"team": "sales"})
