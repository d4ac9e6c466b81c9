"""A server and a repository client in memory, behind the interfaces of the real ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgewright_ota import (
    Client,
    DdiClient,
    Deployment,
    Package,
    Poll,
    Release,
    Repository,
    ServerError,
    TrustError,
)


@dataclass(frozen=True)
class Report:
    deployment: str
    execution: str
    result: str
    details: tuple[str, ...]


class MemoryServer(DdiClient):
    """Offers a deployment until it is closed, as a DDI server does."""

    def __init__(self) -> None:
        self.deployment: Deployment | None = None
        self.reports: list[Report] = []
        self.config: Mapping[str, str] | None = None
        self.wants_config = False
        self.reachable = True
        self.takes_reports = True
        self.polls = 0

    def offer(self, version: str, *, id: str = "1", name: str = "tiny") -> None:  # noqa: A002
        self.deployment = Deployment(id=id, name=name, version=version)

    @property
    def closed(self) -> list[Report]:
        return [r for r in self.reports if r.execution == "closed"]

    def poll(self) -> Poll:
        self.polls += 1
        if not self.reachable:
            raise ServerError("http://server: no answer (refused); is the server running?")
        return Poll(interval_s=60, deployment=self.deployment, wants_config=self.wants_config)

    def feedback(
        self, deployment_id: str, *, execution: str, result: str, details: Sequence[str] = ()
    ) -> None:
        if execution == "closed" and not self.takes_reports:
            raise ServerError("http://server: the answer was cut off; try again")
        self.reports.append(Report(deployment_id, execution, result, tuple(details)))
        if execution == "closed":
            self.deployment = None

    def send_config(self, attributes: Mapping[str, str]) -> None:
        self.config = attributes
        self.wants_config = False


@dataclass
class MemoryClient(Client):
    """Takes releases and packages straight from a repository's folder."""

    repository: Repository
    folder: Path
    downloads: list[str] = field(default_factory=list)
    damaged: set[str] = field(default_factory=set)
    distrusted: set[str] = field(default_factory=set)
    cut_off: bool = False
    during_download: Callable[[], object] | None = None

    def release(self, name: str, version: str) -> Release:
        if version in self.distrusted:
            raise TrustError(f"{name} {version}: is not signed by this repository's keys")
        return self.repository.release(name, version)

    def download(self, release: Release, package: Package, progress: Any = None) -> Path:
        self.downloads.append(package.filename)
        if self.cut_off:
            raise ServerError(
                f"http://server/{package.filename}: cut off after 10 bytes; it is resumed next time"
            )
        if self.during_download is not None:
            self.during_download()
        if progress is not None:
            progress(package.size_bytes // 2, package.size_bytes)
        data = bytearray(self.repository.package_path(release, package).read_bytes())
        if package.filename in self.damaged:
            data[len(data) // 2] ^= 1
        self.folder.mkdir(exist_ok=True)
        file = self.folder / package.filename
        file.write_bytes(data)
        return file
