"""Lowering: a QDQ graph becomes the integer program that the native engine runs."""

from edgewright.lower.arena import place_in_arena
from edgewright.lower.lowering import NATIVE_OPERATORS, Attempt, attempt, lower
from edgewright.lower.scales import describe, rescale

__all__ = ["NATIVE_OPERATORS", "Attempt", "attempt", "describe", "lower", "place_in_arena", "rescale"]
