"""A lock: what a compression was made from, so exactly that the same lock gives the same bits.

It holds the recipe with its seed, digests of the data and of the models, the versions of what computes, and
what of the machine changes bits. `compress` leaves it beside its result; a checkpoint belongs to one.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from edgewright.durable import write_whole
from edgewright.errors import DataError, RecipeError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from edgewright.data import Batch, Data

FORMAT = 1
COMPUTING = ("edgewright", "torch", "torch-pruning", "numpy", "onnx")
"""Distributions whose version can change a bit of the result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lock:
    """What a compression was made from, and what came of it.

    Attributes:
        recipe: Its sections and keys, with all defaults written out.
        models: SHA-256 of each model given, by role: "model", "teacher".
        data: SHA-256 of each part: "train", "validation".
        versions: Of Python and the libraries that compute.
        machine: What changes the last bits of a sum: architecture, vector instructions, threads.
        artifact: Its name and target, where one is made.
        result: SHA-256 of what was made, by kind: "model", "artifact"; empty until it is.
    """

    recipe: Mapping[str, Any]
    models: Mapping[str, str]
    data: Mapping[str, str]
    versions: Mapping[str, str]
    machine: Mapping[str, str]
    artifact: Mapping[str, str]
    result: Mapping[str, str]

    @classmethod
    def of(cls, recipe: Mapping[str, Any], models: Mapping[str, nn.Module | Path], data: Data) -> Self:
        """Locks what a job is about to use. Goes once through the data.

        Args:
            recipe: What to do, as a table.
            models: By role: modules, or files that are taken as they are.
            data: What to learn from. Batches that come in another order, or changed by chance, are the same
                as long as they draw their random numbers from torch's global generator.

        Raises:
            DataError: The data cannot be repeated, or is damaged.
        """
        import torch

        from edgewright.data import is_shuffled
        from edgewright.training import own_randomness

        if isinstance(getattr(data.train, "generator", None), torch.Generator):
            raise DataError(
                "the training data draws from a generator of its own, so that its order cannot be repeated; "
                "let it draw from torch's (leave out the DataLoader's `generator`)"
            )
        digests = {}
        for part, batches in (("train", data.train), ("validation", data.validation)):
            with own_randomness():
                torch.manual_seed(0)
                found = _batches_digest(batches)
                if part == "train" and is_shuffled(batches):  # and how it changes them by chance
                    first = itertools.islice(batches.epoch(torch.Generator().manual_seed(0)), 1)
                    found = _batches_digest(first, found)
            digests[part] = found
        return cls(
            recipe=json.loads(json.dumps(recipe)),  # as a file gives it back
            models={
                role: file_digest(m) if isinstance(m, Path) else module_digest(m)
                for role, m in models.items()
            },
            data=digests,
            versions={"python": platform.python_version(), **{name: version(name) for name in COMPUTING}},
            machine={
                "architecture": platform.machine(),
                "instructions": torch.backends.cpu.get_cpu_capability(),
                "threads": str(torch.get_num_threads()),
                "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
            },
            artifact={},
            result={},
        )

    def for_artifact(self, name: str, target: str) -> Self:
        """The same lock, of work that goes on to an artifact."""
        return replace(self, artifact={"name": name, "target": target})

    def with_result(self, **digests: str) -> Self:
        """The same lock, with what came of it."""
        return replace(self, result={**self.result, **digests})

    def differences(self, other: Lock) -> tuple[str, ...]:
        """What another lock has otherwise, one sentence each; results are not compared."""
        here, there = _flat(asdict(self) | {"result": {}}), _flat(asdict(other) | {"result": {}})
        return tuple(
            _sentence(key, here.get(key), there.get(key))
            for key in sorted(here.keys() | there.keys())
            if here.get(key) != there.get(key)
        )

    def to_json(self) -> str:
        """Writes the lock as JSON text that `from_json` reads back to an equal lock."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, path: Path) -> Self:
        """Reads a lock file.

        Raises:
            RecipeError: It cannot be read, or is no lock of this format.
        """
        try:
            table = json.loads(path.read_text("utf-8"))
            if table.pop("format") != FORMAT:
                raise ValueError("its format is another")
            lock = cls(**table)
            if not all(isinstance(part, dict) for part in asdict(lock).values()):
                raise ValueError("its parts are no tables")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RecipeError(f"{path}: cannot read this lock: {error}") from None
        return lock

    def write(self, path: Path) -> None:
        """Writes the lock to a file, whole or not at all."""
        write_whole(path, self.to_json().encode())


def module_digest(model: nn.Module) -> str:
    """SHA-256 of a module: its layers, their plain attributes, its parameters and buffers."""
    from edgewright.structure import plain_attributes

    hashed = hashlib.sha256()
    for name, module in model.named_modules():
        attributes = json.dumps(plain_attributes(module), sort_keys=True)
        hashed.update(f"{name} {type(module).__qualname__} {attributes}\n".encode())
    for name, parameter in model.named_parameters(remove_duplicate=False):
        _add(hashed, f"{name} {parameter.requires_grad}", parameter.detach())
    for name, buffer in model.named_buffers(remove_duplicate=False):
        _add(hashed, name, buffer)
    return hashed.hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _batches_digest(batches: Iterable[Batch], begun: str = "") -> str:
    import torch

    from edgewright.data import parts
    from edgewright.training import tensors

    hashed = hashlib.sha256(begun.encode())
    for batch in batches:
        inputs, labels = tensors(batch, torch.device("cpu"))
        names = sorted(inputs) if isinstance(inputs, Mapping) else [""] * len(parts(inputs))
        values = [inputs[name] for name in names] if isinstance(inputs, Mapping) else parts(inputs)
        for name, value in zip([*names, "labels"], [*values, labels], strict=True):
            _add(hashed, name, value)
    return hashed.hexdigest()


def _add(hashed: Any, name: str, value: Tensor) -> None:
    import torch

    hashed.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
    hashed.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def _flat(table: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """A table of tables as one table of dotted keys."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{above}{key}.")
        else:
            found[above + key] = value
    return found


def _sentence(key: str, here: Any, there: Any) -> str:
    part, _, name = key.partition(".")
    if part == "data":
        return f"the {'training' if name == 'train' else name} data are others"
    if part == "models" and here and there:
        return f"the {name} is another"
    was, now = ("absent" if value is None else repr(value) for value in (here, there))
    if part == "models":
        was, now = ("absent" if value is None else "given" for value in (here, there))
    return f"{name or part} was {was} and is {now}"
