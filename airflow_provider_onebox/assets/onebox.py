"""The asset URI ``onebox://<host>/<site>/<resource>``: its check, its factory, and its name in OpenLineage."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from urllib.parse import SplitResult

    from airflow.providers.common.compat.openlineage.facet import Dataset
    from airflow.providers.common.compat.sdk import Asset

_NETLOC = re.compile(r"([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")
_PATH = re.compile(r"/[0-9]+/[A-Za-z0-9_]+")


def sanitize_uri(uri: SplitResult) -> SplitResult:
    """Validate an asset URI and normalize it; Airflow calls this for each.

    :param uri: the parts of the URI.
    :return: the same with the host in lower case, and without a trailing slash and the default port.
    :raises ValueError: if it is not ``onebox://<host>/<site>/<resource>``. The message never contains the URI.
    """
    netloc, path = uri.netloc.lower().removesuffix(":443"), uri.path.rstrip("/")
    if not _NETLOC.fullmatch(netloc) or not _PATH.fullmatch(path) or uri.query or uri.fragment:
        # Text before an @ can be a password, so the value is not shown.
        raise ValueError(
            "The URI of a Onebox asset is onebox://<host>/<site>/<resource>, such as "
            "onebox://cloud.onebox.co.id/169/ticketrz: an ASCII host, the site's number, a name, and no user, password "
            "or query."
        )
    return uri._replace(netloc=netloc, path=path)


def create_asset(*, host: str, site_id: str | int, resource: str, extra: dict[str, Any] | None = None) -> Asset:
    """Make the asset of a resource.

    :param host: the host of Onebox, or the Onebox URL of the connection.
    :param site_id: the site.
    :param resource: ``ticketrz``, ``contactrz``, ``prospectrz``, ``message`` or ``connection``.
    :param extra: the asset's ``extra``.
    :return: the asset ``onebox://<host>/<site>/<resource>``.
    :raises ValueError: if these don't make a valid URI; on Airflow 2.11 a warning, unless ``[core]
        strict_dataset_uri_validation`` is set.
    """
    from airflow.providers.common.compat.sdk import Asset

    return Asset(uri=f"onebox://{urlsplit(host).netloc or host}/{site_id}/{resource}", extra=extra)


def convert_asset_to_openlineage(asset: Asset, lineage_context: Any) -> Dataset:
    """Name an asset as OpenLineage does; its Airflow provider calls this.

    :param asset: the asset.
    :param lineage_context: the hook that has listed it, ``None`` for what the task declares.
    :return: the dataset with namespace ``onebox://<host>`` and name ``<site>/<resource>``. If a hook has listed it, the
        facet ``inputStatistics`` has the number of records.
    """
    from airflow.providers.common.compat.openlineage.facet import Dataset, InputDataset

    parts = urlsplit(asset.uri)
    namespace, name = f"onebox://{parts.netloc}", parts.path.removeprefix("/")
    if lineage_context is None:
        return Dataset(namespace, name)
    facets: dict[str, Any] = {}
    count: Any = (asset.extra or {}).get("count")
    if count is not None:
        with suppress(ImportError):  # OpenLineage clients from before 2025 lack it.
            from openlineage.client.generated.input_statistics_input_dataset import InputStatisticsInputDatasetFacet

            facets["inputStatistics"] = InputStatisticsInputDatasetFacet(rowCount=count)
    return InputDataset(namespace, name, inputFacets=facets)
