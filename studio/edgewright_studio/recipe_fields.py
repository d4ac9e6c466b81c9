"""A recipe as a form: which fields it has, read from the `Recipe` class itself. Qt-free.

The form thus always fits the SDK: a new field of a recipe appears here by itself, with its help text.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

import edgewright as ew

FieldKind = Literal["int", "float", "text", "choice"]
Values = dict[str, Any]

# It is of use only with `layers`, which a form cannot hold; a recipe file sets both.
_NOT_IN_FORM = frozenset({"mask"})

# What a search may vary is edited in the recipe file.
_NO_PARTS = frozenset({"search"})

_KINDS: dict[type, FieldKind] = {int: "int", float: "float", str: "text"}

PART_TITLES = {
    "distill": "Distill from a teacher",
    "prune": "Prune channels",
    "finetune": "Fine-tune",
    "qat": "Train for integers",
    "quantize": "Quantize to INT8",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FormField:
    """One field: what kind of value, its default, its help, and its choices or bounds."""

    name: str
    title: str
    kind: FieldKind
    default: Any
    help: str
    choices: tuple[Any, ...] = ()
    low: float = -math.inf
    high: float = math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A section of the form; an optional one is a step that can be left out."""

    name: str
    title: str
    optional: bool
    make: type[Any]
    fields: tuple[FormField, ...]


def parts() -> tuple[Part, ...]:
    """The sections of a recipe, in its order."""
    found: list[Part] = []
    for name, hint in get_type_hints(ew.Recipe).items():
        if name in _NO_PARTS:
            continue
        kinds = [k for k in (get_args(hint) or (hint,)) if is_dataclass(k)]
        if kinds:
            kind = kinds[0]
            assert isinstance(kind, type)
            found.append(
                Part(
                    name=name,
                    title=PART_TITLES.get(name, _title(name)),
                    optional=type(None) in get_args(hint),
                    make=kind,
                    fields=_form_fields(kind),
                )
            )
    return tuple(found)


def values_of(recipe: ew.Recipe) -> dict[str, Values | None]:
    """Every field of every part, by name, also those the form lacks; None for a part that is left out."""
    result: dict[str, Values | None] = {}
    for part in parts():
        made = getattr(recipe, part.name)
        result[part.name] = None if made is None else {f.name: getattr(made, f.name) for f in fields(made)}
    return result


def make_recipe(name: str, seed: int, values: Mapping[str, Values | None]) -> ew.Recipe:
    """The recipe that a form describes.

    Raises:
        ValueError: A value is out of range or of a wrong type; the message begins with the field's name.
    """
    made = {part.name: _make(part, values.get(part.name)) for part in parts()}
    return ew.Recipe(name=name, seed=seed, **{k: v for k, v in made.items() if v is not None})


def problem_in(part: Part, values: Values) -> tuple[str, str] | None:
    """(field, message) for the first thing that is wrong in a part, or None."""
    try:
        _make(part, values)
    except ValueError as error:
        name, _, message = str(error).partition(": ")
        known = {f.name for f in part.fields}
        return (name, message) if name in known else (part.fields[0].name, str(error))
    return None


def _make(part: Part, values: Values | None) -> Any:
    return None if values is None else part.make(**values)


def _form_fields(kind: type[Any]) -> tuple[FormField, ...]:
    hints = get_type_hints(kind)
    help_texts = _help(kind)
    found = (_form_field(f, hints[f.name], help_texts.get(f.name, "")) for f in fields(kind))
    return tuple(f for f in found if f is not None)


def _form_field(each: Field[Any], hint: Any, help_text: str) -> FormField | None:
    """None for a field that a form cannot hold, and for a choice of one."""
    choices = (False, True) if hint is bool else get_args(hint) if get_origin(hint) is Literal else ()
    kind: FieldKind | None = "choice" if len(choices) > 1 else _KINDS.get(hint)
    if kind is None or each.name in _NOT_IN_FORM:
        return None
    low, high, *_ = each.metadata.get("bounds", (-math.inf, math.inf))
    return FormField(
        name=each.name,
        title=_title(each.name),
        kind=kind,
        default=None if each.default is MISSING else each.default,
        help=help_text,
        choices=choices,
        low=low,
        high=high,
    )


def _title(name: str) -> str:
    return name.replace("_", " ").capitalize()


def _help(kind: type[Any]) -> dict[str, str]:
    """The `Attributes:` of a class and its bases, by name, each as one line."""
    texts: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        _, _, section = (inspect.getdoc(each) or "").partition("Attributes:\n")
        for match in re.finditer(r"^ {4}(\w+): (.+(?:\n {8}.+)*)", section, re.MULTILINE):
            texts[match[1]] = " ".join(match[2].split())
    return texts
