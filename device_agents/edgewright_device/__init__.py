"""What a device can run, and the agent that runs it and keeps it up to date."""

from edgewright_device.artifact import (
    Artifact,
    ArtifactFile,
    Port,
    encode_golden,
    write_artifact,
    write_report,
)
from edgewright_device.errors import ArtifactError, DeviceError, RunnerError, TargetError
from edgewright_device.runner import BACKENDS, Runner
from edgewright_device.target import Target, detect, target_names

__all__ = [
    "BACKENDS",
    "Artifact",
    "ArtifactError",
    "ArtifactFile",
    "DeviceError",
    "Port",
    "Runner",
    "RunnerError",
    "Target",
    "TargetError",
    "detect",
    "encode_golden",
    "target_names",
    "write_artifact",
    "write_report",
]
