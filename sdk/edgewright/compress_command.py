"""What `edgewright compress` and `edgewright distill` do: places, checkpoint, lock, and what was kept."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from edgewright.console import (
    DID_NOT_HOLD,
    DONE,
    EXPORT_SHARES,
    check_writable,
    console_for,
    emit,
    noting,
    progress_bar,
)
from edgewright.errors import CompressError, ExportError
from edgewright_device import check_place, detect

if TYPE_CHECKING:
    from torch import nn

    from edgewright.data import Data
    from edgewright.fidelity import Fidelity
    from edgewright.lock import Lock
    from edgewright.progress import OnProgress
    from edgewright.recipe import Recipe
    from edgewright_device import Artifact, Target


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a command line asks for.

    Attributes:
        model: `FILE.py:NAME`, or the path of a `.pt2` or `.onnx` file; so is `teacher`.
        recipe: What to do.
        data: A .npz file, or `FILE.py:NAME`.
        out: `NAME.pt2`, the float model; `NAME.onnx`, a QDQ graph, of a recipe with `[qat]`; or `NAME.ew`, an
            artifact.
        target: What will run the artifact.
        checkpoint: Where to keep what is done; beside `out`, and only until it is written, if None.
        locked: A lock that must fit, or None.
    """

    model: str
    recipe: Recipe
    data: str
    out: Path
    weights: Path | None = None
    teacher: str | None = None
    teacher_weights: Path | None = None
    target: Target | None = None
    checkpoint: Path | None = None
    locked: Path | None = None


def run_compress(wanted: Wanted, json_to: str | None) -> int:
    """Compresses as asked, and says what was kept of the model.

    Returns:
        The exit code: 1 where the lock fitted and the result is another all the same.

    Raises:
        SdkError: It cannot be done; the message says why.
    """
    code, told = carry_out(wanted, console_for(json_to))
    emit(json_to, told)
    return code


def carry_out(wanted: Wanted, console: Any) -> tuple[int, dict[str, Any]]:
    """The same, with the results given back: the exit code, and what JSON is told."""
    import edgewright as ew
    from edgewright.compression import lock_of, shares_of
    from edgewright.data import load_data
    from edgewright.lock import Lock

    check_out(wanted)
    seed = wanted.recipe.seed
    data = load_data(wanted.data)
    onnx = wanted.model.endswith(".onnx")
    given = Path(wanted.model) if onnx else ew.load_model(wanted.model, wanted.weights, seed=seed)
    teacher = ew.load_model(wanted.teacher, wanted.teacher_weights, seed=seed) if wanted.teacher else None
    if not isinstance(given, Path):
        _check_traceable(given, data)
    before = None
    if wanted.locked is not None:
        before = Lock.from_json(wanted.locked)
        now = _with_artifact(lock_of(given, wanted.recipe, data, teacher), wanted)
        if differences := before.differences(now):
            raise CompressError(f"{wanted.locked}: does not fit what is given: {'; '.join(differences)}")
    kept = wanted.checkpoint or wanted.out.with_suffix(".checkpoint")
    notes: list[str] = []
    shares = shares_of(wanted.recipe, teacher) | (EXPORT_SHARES if wanted.out.suffix == ".ew" else {})
    try:
        with progress_bar(console, shares) as bar:
            small, artifact = _made(wanted, given, teacher, data, kept, noting(notes, bar))
    except BaseException:  # Ctrl-C too
        if kept.is_dir():
            console.print(f"the same command goes on from {escape(str(kept))}")
        raise
    for note in notes:
        console.print(escape(note))
    lock = lock_of(given, wanted.recipe, data, teacher) if onnx else Lock.from_json(kept / "lock.json")
    lock = _with_artifact(lock, wanted).with_result(**_digests(small, artifact))
    lock.write(wanted.out.with_suffix(".lock"))
    told = _report(given, teacher, small, artifact, data, wanted, console)
    told = {"model": str(wanted.out), **told, "notes": notes, "result": dict(lock.result)}
    if wanted.checkpoint is None:
        shutil.rmtree(kept, ignore_errors=True)
    if before is not None and (others := _others(before, lock)):
        what = f"another {' and '.join(others)} than {wanted.locked} has"
        console.print(f"[red]did not hold:[/] the same arguments gave {escape(what)}")
        return DID_NOT_HOLD, told
    return DONE, told


def _with_artifact(lock: Lock, wanted: Wanted) -> Lock:
    if wanted.out.suffix != ".ew":
        return lock
    return lock.for_artifact(wanted.out.stem, (wanted.target or detect()).name)


def check_out(wanted: Wanted) -> None:
    """Refuses, before any work, a result that could not be written after it."""
    out = wanted.out
    quantized = wanted.recipe.qat is not None
    program, kind = ("NAME.onnx", "QDQ graph") if quantized else ("NAME.pt2", "torch.export program")
    if out.suffix not in (Path(program).suffix, ".ew"):
        raise ExportError(
            f"{out}: the compressed model is a {kind}, named {program}, or an artifact, NAME.ew"
        )
    if wanted.model.endswith(".onnx") and out.suffix != ".ew":
        raise ExportError(f"{out}: of an .onnx file an artifact is made; name it NAME.ew")
    if out.suffix != ".ew":
        check_writable(out)
    else:
        try:
            check_place(out, out.stem)
        except ValueError as error:
            raise ExportError(f"{out}: {error}") from None
    check_writable(out.with_suffix(".lock"))


def _check_traceable(model: nn.Module, data: Data) -> None:
    """Refuses, before any training, a model that could not be saved after it."""
    import torch

    from edgewright.models import trace

    try:
        example = _example(model, data)
        with torch.no_grad():
            model(*example)
    except Exception:  # a model may raise anything; `compress` tells best what does not fit
        return
    trace(model, example)


def _example(model: nn.Module, data: Data) -> tuple[Any, ...]:
    """The arguments of one call, in order."""
    import torch

    from edgewright.graph import forward_parameters
    from edgewright.training import tensors

    inputs, _ = tensors(next(iter(data.validation)), torch.device("cpu"))
    if isinstance(inputs, Mapping):
        return tuple(inputs[name] for name in forward_parameters(model) if name in inputs)
    return inputs if isinstance(inputs, tuple) else (inputs,)


def _made(
    wanted: Wanted,
    given: nn.Module | Path,
    teacher: nn.Module | None,
    data: Data,
    kept: Path,
    progress: OnProgress,
) -> tuple[nn.Module | Path, Artifact | None]:
    """Compresses, and writes what comes of it."""
    import edgewright as ew

    small: nn.Module | Path
    if isinstance(given, Path):
        small = given
        ew.compress(given, wanted.recipe, data=data, progress=progress)
    else:
        small = ew.compress(
            given, wanted.recipe, data=data, teacher=teacher, progress=progress, checkpoint=kept
        )
    if wanted.out.suffix != ".ew":
        assert not isinstance(small, Path)
        ew.save_model(small, _example(small, data), wanted.out)
        return small, None
    artifact = ew.export(
        small,
        target=wanted.target or detect(),
        calibration=data.train,
        out=wanted.out,
        quantize=wanted.recipe.quantize,
        progress=progress,
    )
    return small, artifact


def _digests(small: nn.Module | Path, artifact: Artifact | None) -> dict[str, str]:
    from edgewright.lock import file_digest, module_digest

    found = {"model": file_digest(small) if isinstance(small, Path) else module_digest(small)}
    return found | ({"artifact": artifact.digest} if artifact is not None else {})


def _others(before: Lock, now: Lock) -> list[str]:
    return [kind for kind, digest in now.result.items() if before.result.get(kind, digest) != digest]


def _report(
    given: nn.Module | Path,
    teacher: nn.Module | None,
    small: nn.Module | Path,
    artifact: Artifact | None,
    data: Data,
    wanted: Wanted,
    console: Any,
) -> dict[str, Any]:
    """Shows what was kept on the validation data: of the teacher, if the recipe distils, or the model."""
    from edgewright.fidelity import described, fidelity, outputs_of
    from edgewright.models import onnx_model, runner_model

    def measured(name: str, module: nn.Module, against: str, reference: Any) -> Any:
        outputs = outputs_of(module, data.validation)[0]
        found = fidelity(reference, outputs, labels)
        rows[name] = {"parameters": _count(module), "accuracy": found.accuracy}
        rows[name] |= {"against": against, "fidelity": _for_json(found)}
        sentences.append(f"{name}, against {against}: {described(found)}")
        return outputs

    rows: dict[str, dict[str, Any]] = {}
    sentences: list[str] = []
    original = onnx_model(given) if isinstance(given, Path) else given
    outputs, labels = outputs_of(original, data.validation)
    accuracy = float((outputs.argmax(1) == labels).mean())
    rows["before"] = {"parameters": _count(original), "accuracy": accuracy}
    against = "the model given"
    if wanted.recipe.distill is not None and teacher is not None:
        against, outputs = "the teacher", outputs_of(teacher, data.validation)[0]
    if not isinstance(small, Path):
        outputs = measured("after", small, against, outputs)
        against = "its float model" if wanted.recipe.qat is None else "the model as it was trained"
    if artifact is not None:
        measured("artifact", runner_model(artifact), against, outputs)
    table = Table("", "parameters", "validation accuracy")
    for name, row in rows.items():
        size = "" if row["parameters"] is None else f"{row['parameters']:,}"
        table.add_row(name, size, f"{100 * row['accuracy']:.2f} %")
    console.print(table)
    for sentence in sentences:
        console.print(escape(sentence))
    console.print(f"wrote {escape(str(wanted.out))} and {escape(wanted.out.with_suffix('.lock').name)}")
    return rows


def _count(model: nn.Module) -> int | None:
    """How many parameters a module has; None for one that is not made of layers."""
    return sum(p.numel() for p in model.parameters()) or None


def _for_json(found: Fidelity) -> dict[str, Any]:
    """JSON has no infinity: the noise of equal outputs is null."""
    return {
        name: value if not isinstance(value, float) or math.isfinite(value) else None
        for name, value in asdict(found).items()
    }
