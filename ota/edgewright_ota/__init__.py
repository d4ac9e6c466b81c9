"""Trust and transport: signed releases, tiny deltas, and the update server and client."""

from typing import TYPE_CHECKING, Any

from edgewright_ota.client import Client
from edgewright_ota.ddi import DdiClient, Deployment, Poll
from edgewright_ota.errors import (
    DatabaseError,
    OtaError,
    PackageError,
    ReleaseError,
    RepositoryError,
    ServerError,
    TrustError,
)
from edgewright_ota.fleet import Fleet
from edgewright_ota.package import pack, unpack
from edgewright_ota.release import Package, Release, ReleaseFile
from edgewright_ota.repository import Repository
from edgewright_ota.sequential import MeanSequence, MedianSequence, count_needed, least_hits
from edgewright_ota.streams import (
    StreamComparison,
    compare_medians,
    compare_rates,
    device_failures,
    device_medians,
)

if TYPE_CHECKING:
    from edgewright_ota.server import create_app

__all__ = [
    "Client",
    "DatabaseError",
    "DdiClient",
    "Deployment",
    "Fleet",
    "MeanSequence",
    "MedianSequence",
    "OtaError",
    "Package",
    "PackageError",
    "Poll",
    "Release",
    "ReleaseError",
    "ReleaseFile",
    "Repository",
    "RepositoryError",
    "ServerError",
    "StreamComparison",
    "TrustError",
    "compare_medians",
    "compare_rates",
    "count_needed",
    "create_app",
    "device_failures",
    "device_medians",
    "least_hits",
    "pack",
    "unpack",
]


def __getattr__(name: str) -> Any:
    # The server needs the `server` extra, which a device does not have.
    if name == "create_app":
        from edgewright_ota.server import create_app

        return create_app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
