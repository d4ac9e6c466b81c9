"""Errors of the integer engine.

    KernelError
    ├── PlanError         plan.bin or the weights it points to are damaged or not understood
    └── UnsupportedError  a well-formed plan asks for what this engine or CPU lacks

A caller's own mistake (a wrong shape or dtype) is a ValueError.
"""


class KernelError(Exception):
    """Base of every error this package raises."""


class PlanError(KernelError):
    """A plan, or the weights it points to, is damaged; the message names the place."""


class UnsupportedError(KernelError):
    """The plan is well formed but needs an operator, version or CPU path that is not here."""
