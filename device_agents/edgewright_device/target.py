"""Target: what a piece of hardware can run."""

from __future__ import annotations

import difflib
import os
import platform
import re
import tomllib
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

from edgewright_device.errors import TargetError
from edgewright_device.runner import BACKENDS
from edgewright_kernels import cpu_paths

Status = Literal["run", "tested", "documented"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What hardware can do; one TOML file each.

    Attributes:
        name: As in `Target.load`.
        title: For people.
        arch: As `platform.machine()` says it: "x86_64", "aarch64".
        instruction_sets: SIMD extensions that kernels may use, beyond the architecture's base.
        memory_bytes: Memory that a model may count on.
        backends: Runner backends, the preferred first.
        strategy: The recommended way to run a model there.
        status: "run": the tests run on such hardware; "tested": its rules are unit-tested; "documented":
            known from documentation alone.
    """

    name: str
    title: str
    arch: str
    instruction_sets: tuple[str, ...]
    memory_bytes: int
    backends: tuple[str, ...]
    strategy: str
    status: Status

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


def target_names() -> tuple[str, ...]:
    """Names of the targets that come with Edgewright, sorted."""
    folder = resources.files("edgewright_device").joinpath("targets")
    return tuple(sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml")))


def detect() -> Target:
    """The target that describes this machine best.

    Raises:
        TargetError: None of them does.
    """
    arch = platform.machine()
    here = {arch, *cpu_paths()}
    fitting = [
        t
        for t in map(Target.load, target_names())
        if t.arch == arch and t.status == "run" and set(t.instruction_sets) <= here
    ]
    if not fitting:
        raise TargetError(f"no target fits this machine ({arch}); describe it in a TOML file and load that")
    return max(fitting, key=lambda t: len(t.instruction_sets))


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
        if field.name not in data:
            raise TargetError(f"{where}: {field.name!r} is missing")
        values[field.name] = _value(where, field.name, data[field.name])
    return Target(**values)


def _value(where: str, key: str, value: object) -> object:
    if key in {"instruction_sets", "backends"}:
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            raise TargetError(f"{where}: {key} must be a list of names, not {value!r}")
        unknown = [v for v in value if v not in BACKENDS]
        if key == "backends" and (unknown or not value):
            what = f"no backend {unknown[0]!r}" if unknown else "one backend at least is needed"
            raise TargetError(f"{where}: {what}; choose from {', '.join(BACKENDS)}")
        return tuple(value)
    if key == "memory_bytes":
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            raise TargetError(f"{where}: {key} must be a positive whole number, not {value!r}")
        return value
    if not isinstance(value, str) or not value:
        raise TargetError(f"{where}: {key} must be text, not {value!r}")
    if key == "name" and not _NAME.fullmatch(value):
        raise TargetError(
            f"{where}: name {value!r}: 1 to 64 letters, digits, '.', '_' or '-', a letter or digit first"
        )
    if key == "status" and value not in get_args(Status):
        raise TargetError(f"{where}: status must be one of {', '.join(get_args(Status))}, not {value!r}")
    return value
