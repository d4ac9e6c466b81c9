"""Lowering: a QDQ graph becomes the integer program that the native engine runs."""

from edgewright.lower.arena import place_in_arena
from edgewright.lower.forms import FORMS, REWRITTEN, operators_table
from edgewright.lower.lowering import NATIVE_OPERATORS, Attempt, attempt, lower
from edgewright.lower.scales import describe, rescale

__all__ = [
    "FORMS",
    "NATIVE_OPERATORS",
    "REWRITTEN",
    "Attempt",
    "attempt",
    "describe",
    "lower",
    "operators_table",
    "place_in_arena",
    "rescale",
]
