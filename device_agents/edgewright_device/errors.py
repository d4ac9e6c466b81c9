"""Errors of the device.

    DeviceError
    ├── ArtifactError   an artifact is missing, damaged, or of a format this version does not read
    ├── TargetError     no such target, or a target file that cannot be understood
    ├── RunnerError     the wanted backend cannot run this artifact here
    ├── SlotError       slots are in use, damaged or full, or hold nothing to go back to
    └── ServingError    the local server cannot listen there

A caller's own mistake (a wrong input name, shape or dtype) is a ValueError.
"""


class DeviceError(Exception):
    """Base of every error this package raises."""


class ArtifactError(DeviceError):
    """An artifact is missing, damaged, or of another format; the message names the file."""


class TargetError(DeviceError):
    """A target is not known, or its file is wrong; the message names the key or the nearest name."""


class RunnerError(DeviceError):
    """A backend cannot run this artifact here; the message names one that can, where there is one."""


class SlotError(DeviceError):
    """Slots cannot do what was asked; the message names the directory, the bytes or the other process."""


class ServingError(DeviceError):
    """The local server cannot listen; the message names the address."""
