"""Frozen dataclasses as plain JSON values, and back."""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

_T = TypeVar("_T")


def to_plain(value: Any) -> Any:
    """Dataclasses, mappings and tuples as dicts and lists; a number that is none as "inf", "-inf", "nan"."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def from_plain(wanted: type[_T], value: Any) -> _T:
    """What `to_plain` was given, of this type.

    Raises:
        ValueError: It is something else; the message names the place.
    """
    return cast(_T, _read(wanted, value, wanted.__name__))


def _read(wanted: Any, value: Any, where: str) -> Any:
    origin, inside = get_origin(wanted), get_args(wanted)
    if wanted is Any:
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in inside:
            return None
        kinds = [k for k in inside if k is not type(None)]
        for kind in kinds[:-1]:
            try:
                return _read(kind, value, where)
            except ValueError:
                continue
        return _read(kinds[-1], value, where)
    if origin is Literal:
        if value not in inside:
            raise ValueError(f"{where}: {value!r:.40} is none of {', '.join(map(str, inside))}")
        return value
    if isinstance(wanted, type) and is_dataclass(wanted):
        return _dataclass(wanted, value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{where}: {value!r:.40} is not a list")
        each = inside[:1] * len(value) if inside[-1] is Ellipsis else inside
        if len(each) != len(value):
            raise ValueError(f"{where}: has {len(value)} values, not {len(each)}")
        return tuple(_read(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(each, value, strict=True)))
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            raise ValueError(f"{where}: {value!r:.40} is not an object")
        return {k: _read(inside[1], v, f"{where}.{k}") for k, v in value.items()}
    return _scalar(wanted, value, where)


def _dataclass(wanted: type[Any], value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: {value!r:.40} is not an object")
    hints = get_type_hints(wanted)
    known = {f.name: f for f in fields(wanted)}
    if unknown := value.keys() - known.keys():
        raise ValueError(f"{where}: unknown key {min(unknown)!r:.40}")
    for name, field in known.items():
        if name not in value and field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{where}: {name!r} is missing")
    return wanted(**{k: _read(hints[k], v, f"{where}.{k}") for k, v in value.items()})


def _scalar(wanted: Any, value: Any, where: str) -> Any:
    if wanted is float:
        if isinstance(value, str) and value in ("inf", "-inf", "nan"):
            return float(value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    elif wanted in (int, str, bool) and type(value) is wanted:
        return value
    raise ValueError(f"{where}: {value!r:.40} is not of type {getattr(wanted, '__name__', wanted)}")
