"""Exact integer inference: the plan, its reference and its kernels."""

from edgewright_kernels.engine import Engine, cpu_paths
from edgewright_kernels.errors import KernelError, PlanError, UnsupportedError

__all__ = ["Engine", "KernelError", "PlanError", "UnsupportedError", "cpu_paths"]
