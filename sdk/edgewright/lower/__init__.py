"""Lowering: a QDQ graph becomes the integer program that the native engine runs."""

from edgewright.lower.arena import place_in_arena
from edgewright.lower.lowering import NATIVE_OPERATORS, lower
from edgewright.lower.scales import rescale

__all__ = ["NATIVE_OPERATORS", "lower", "place_in_arena", "rescale"]
