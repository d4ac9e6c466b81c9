"""Target: what a piece of hardware can run."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

from edgewright_device.errors import TargetError
from edgewright_device.provider import CPU, Choice
from edgewright_device.runner import BACKENDS

Status = Literal["run", "tested", "documented"]
Kind = Literal["edge", "cloud", "training"]
FoundBy = Literal["", "cpu", "board", "gpu"]

STATUS_WORDS: Mapping[Status, str] = {
    "run": "run here",
    "tested": "negotiated and unit-tested",
    "documented": "documented only",
}

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LISTS = frozenset({"instruction_sets", "backends", "providers", "found_as", "sources"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What hardware can do; one TOML file each. Keys behind `status` may be left out.

    Attributes:
        name: As in `Target.load`.
        title: For people.
        arch: As `platform.machine()` says it: "x86_64", "aarch64".
        instruction_sets: SIMD extensions that kernels may use, beyond the architecture's base.
        memory_bytes: Memory that a model may count on.
        backends: Runner backends, the preferred first.
        strategy: The recommended way to run a model there.
        status: "run": tests or a benchmark run on such hardware; "tested": its rules are unit-tested;
            "documented": known from documentation alone.
        kind: "edge": small batches beside a sensor; "cloud": many requests at once; "training": where models
            are made.
        accelerator: What computes beside the CPU, for people; empty if nothing does.
        providers: ONNX Runtime's execution providers, as `Choice.of` reads them, the preferred first. That
            of the CPU runs anything; a target without it has no way out for what the others refuse.
        evidence: What the status rests on.
        found_by: How `detect` finds it: by the CPU, by the board's name in the device tree, by the name of a
            GPU, or never.
        found_as: Those names, or the beginning of them; any one suffices.
        sources: What each fact was taken from, "fact: address".
    """

    name: str
    title: str
    arch: str
    instruction_sets: tuple[str, ...]
    memory_bytes: int
    backends: tuple[str, ...]
    strategy: str
    status: Status
    kind: Kind = "edge"
    accelerator: str = ""
    providers: tuple[str, ...] = (CPU,)
    evidence: str = ""
    found_by: FoundBy = ""
    found_as: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()

    @classmethod
    def load(cls, target: str | os.PathLike[str]) -> Target:
        """Loads a target that comes with Edgewright, by name, or any other from a TOML file.

        Raises:
            TargetError: Not known (the nearest name is suggested), or the file is wrong.
        """
        text = os.fspath(target)
        known = target_names()
        if text in known:
            source = resources.files("edgewright_device").joinpath("targets", f"{text}.toml")
            return _parse(text, source.read_text("utf-8"))
        if text.endswith(".toml"):
            try:
                return _parse(text, Path(text).read_text("utf-8"))
            except OSError as error:
                raise TargetError(f"{text}: cannot be read ({error.strerror})") from None
            except UnicodeDecodeError:
                raise TargetError(f"{text}: not a text file") from None
        near = difflib.get_close_matches(text, known, n=1, cutoff=0.5)
        hint = (
            f"did you mean {near[0]!r}?"
            if near
            else f"known: {', '.join(known)}; or the path of a .toml file"
        )
        raise TargetError(f"target {text!r} is not known; {hint}")

    def choices(self) -> tuple[Choice, ...]:
        """Its `providers`; none where ONNX Runtime is not among the backends."""
        return tuple(map(Choice.of, self.providers)) if "onnxruntime" in self.backends else ()

    @property
    def fixed_shapes(self) -> bool:
        """Whether nothing there takes sizes that are free when a model is loaded."""
        return set(self.backends) == {"onnxruntime"} and all(c.fixed_shapes for c in self.choices())


def target_names() -> tuple[str, ...]:
    """Names of the targets that come with Edgewright, sorted."""
    folder = resources.files("edgewright_device").joinpath("targets")
    return tuple(sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml")))


def _parse(where: str, text: str) -> Target:
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise TargetError(f"{where}: not TOML ({error})") from None
    keys = [f.name for f in fields(Target)]
    for key in data:
        if key not in keys:
            near = difflib.get_close_matches(key, keys, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(keys)}"
            raise TargetError(f"{where}: unknown key {key!r}{hint}")
    values: dict[str, Any] = {}
    for field in fields(Target):
        if field.name in data:
            values[field.name] = _value(where, field.name, data[field.name])
        elif field.default is MISSING:
            raise TargetError(f"{where}: {field.name!r} is missing")
    return Target(**values)


def _value(where: str, key: str, value: object) -> object:
    if key in _LISTS:
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            raise TargetError(f"{where}: {key} must be a list of names, not {value!r}")
        unknown = [v for v in value if v not in BACKENDS]
        if key == "backends" and (unknown or not value):
            what = f"no backend {unknown[0]!r}" if unknown else "one backend at least is needed"
            raise TargetError(f"{where}: {what}; choose from {', '.join(BACKENDS)}")
        if key == "providers":
            try:
                list(map(Choice.of, value))
            except ValueError as error:
                raise TargetError(f"{where}: {error}") from None
        return tuple(value)
    if key == "memory_bytes":
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            raise TargetError(f"{where}: {key} must be a positive whole number, not {value!r}")
        return value
    may_be_empty = key in {"accelerator", "evidence", "found_by"}
    if not isinstance(value, str) or not (value or may_be_empty):
        raise TargetError(f"{where}: {key} must be text, not {value!r}")
    if key == "name" and not _NAME.fullmatch(value):
        raise TargetError(
            f"{where}: name {value!r}: 1 to 64 letters, digits, '.', '_' or '-', a letter or digit first"
        )
    for one, choices in (("status", Status), ("kind", Kind), ("found_by", FoundBy)):
        if key == one and value not in get_args(choices):
            named = ", ".join(c or '""' for c in get_args(choices))
            raise TargetError(f"{where}: {key} must be one of {named}, not {value!r}")
    return value
