"""What a device can run, and the agent that runs it and keeps it up to date."""

from typing import TYPE_CHECKING, Any

from edgewright_device.artifact import Artifact, check_place, write_artifact, write_report
from edgewright_device.certificate import Certificate
from edgewright_device.detection import detect
from edgewright_device.errors import (
    ArtifactError,
    DeviceError,
    RunnerError,
    ServingError,
    SlotError,
    TargetError,
)
from edgewright_device.fitting import fitting_form, misfits
from edgewright_device.golden import encode_golden
from edgewright_device.health import BOUND_STEPS, HealthReport, replay
from edgewright_device.journal import Journal, SlotRelease
from edgewright_device.manifest import SYMMETRIC, ArtifactFile, Lengths, Part, Port
from edgewright_device.onnx_file import OnnxFile, read_onnx
from edgewright_device.provider import CPU, PROVIDERS, Choice, Provider
from edgewright_device.runner import BACKENDS, EXACT_BACKENDS, Runner
from edgewright_device.serving import Serving
from edgewright_device.slots import Slots
from edgewright_device.target import STATUS_WORDS, Target, target_names

if TYPE_CHECKING:
    from edgewright_device.agent import Agent, Event

__all__ = [
    "BACKENDS",
    "BOUND_STEPS",
    "CPU",
    "EXACT_BACKENDS",
    "PROVIDERS",
    "STATUS_WORDS",
    "SYMMETRIC",
    "Agent",
    "Artifact",
    "ArtifactError",
    "ArtifactFile",
    "Certificate",
    "Choice",
    "DeviceError",
    "Event",
    "HealthReport",
    "Journal",
    "Lengths",
    "OnnxFile",
    "Part",
    "Port",
    "Provider",
    "Runner",
    "RunnerError",
    "Serving",
    "ServingError",
    "SlotError",
    "SlotRelease",
    "Slots",
    "Target",
    "TargetError",
    "check_place",
    "detect",
    "encode_golden",
    "fitting_form",
    "misfits",
    "read_onnx",
    "replay",
    "target_names",
    "write_artifact",
    "write_report",
]


def __getattr__(name: str) -> Any:
    # The agent brings cryptography along, which running a model does not need.
    if name in {"Agent", "Event"}:
        from edgewright_device import agent

        return getattr(agent, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
