"""Exact integer inference: the plan, its reference and its kernels."""
