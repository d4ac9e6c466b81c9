"""What jobs do, in their child processes. Each function takes its `Work` and JSON data, and gives JSON data.

Qt-free. Heavy imports happen inside the functions, for the window imports none of them.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import edgewright as ew
from edgewright_studio import document
from edgewright_studio.errors import TaskError
from edgewright_studio.results import Result, Variant
from edgewright_studio.worker import Work

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import nn

    Samples = npt.NDArray[np.float32]
    Labels = npt.NDArray[np.int64]
    Predict = Callable[[Samples], npt.NDArray[np.float32]]

CASES = 1000
MEASURE_ROUNDS = 200
# Usual seconds of each step of the digits example on a laptop; only their ratio counts.
STEP_SECONDS: Mapping[str, float] = {
    "train": 14,
    "distill": 14,
    "prune": 1,
    "finetune": 5,
    "qat": 8,
    "trace": 4,
    "calibrate": 1,
    "quantize": 0.5,
    "write": 0.5,
    "verify: float": 1,
    "verify: native": 0.5,
    "verify: reference": 2,
    "verify: onnxruntime": 0.5,
    "measure": 4,
}


def open_document(work: Work, *, path: str) -> dict[str, Any]:
    """The summary of a model, as `Document.to_json` writes it."""
    del work
    return document.open_document(Path(path)).to_json()


def list_targets(work: Work) -> dict[str, Any]:
    """Names of the targets, and the one that fits this machine."""
    del work
    return {"names": list(ew.target_names()), "here": ew.detect().name}


def compress_digits(work: Work, *, recipe: str, target: str, out: str) -> dict[str, Any]:
    """The built-in example: trains a teacher on real scans, then compresses a student by the recipe."""
    began_s = time.monotonic()
    wanted = ew.Recipe.from_toml(recipe)
    destination = _checked_destination(out)
    _leave_room()
    digits = ew.digits.load(seed=wanted.seed)
    teacher: nn.Module | None = None
    student: nn.Module
    original: nn.Module
    steps = ["train", *_recipe_steps(wanted), *_FINAL_STEPS]
    work.plan({s: STEP_SECONDS[s] for s in steps})
    tell = _teller(work)
    kept = _checkpoint(destination, "digits", recipe)
    if wanted.distill is not None:
        how = ew.digits.TEACHING
        teacher = ew.train(
            ew.digits.Teacher(),
            digits.data,
            how,
            seed=wanted.seed,
            progress=tell,
            checkpoint=kept / "train",
        )
        original, name, student = teacher, "Teacher, float", ew.digits.Student()
    else:
        # Without a teacher, the student learns from the labels before it is compressed.
        how = ew.digits.TEACHING
        student = ew.train(
            ew.digits.Student(),
            digits.data,
            how,
            seed=wanted.seed,
            progress=tell,
            checkpoint=kept / "train",
        )
        original, name = student, "Float"
    small = ew.compress(
        student,
        wanted,
        data=digits.data,
        teacher=teacher,
        progress=tell,
        checkpoint=kept / "compress",
    )
    variants = [(name, original), ("Compressed, float", small)]
    result = _deliver(
        work,
        title="Handwritten digits",
        floats=variants,
        reference=small,
        recipe=wanted,
        target=target,
        destination=destination,
        calibration=digits.data.train,
        samples=digits.x_test,
        labels=digits.y_test,
        began_s=began_s,
    )
    return result.to_json()


def compress(
    work: Work, *, model: str, entry_point: str, teacher: str, data: str, recipe: str, target: str, out: str
) -> dict[str, Any]:
    """Compresses the model that an entry point of a Python file gives."""
    began_s = time.monotonic()
    wanted = ew.Recipe.from_toml(recipe)
    destination = _checked_destination(out)
    work.plan({s: STEP_SECONDS[s] for s in (*_recipe_steps(wanted), *_FINAL_STEPS)})
    _leave_room()
    original = ew.load_model(f"{model}:{entry_point}", seed=wanted.seed)
    tutor = ew.load_model(f"{model}:{teacher}", seed=wanted.seed) if teacher else None
    loaded = ew.Data.from_npz(data, seed=wanted.seed)
    kept = _checkpoint(destination, Path(model), entry_point, teacher, Path(data), recipe)
    small = ew.compress(original, wanted, data=loaded, teacher=tutor, progress=_teller(work), checkpoint=kept)
    samples, labels = _held_out(loaded)
    result = _deliver(
        work,
        title=Path(model).stem,
        floats=[("Float", original), ("Compressed, float", small)],
        reference=small,
        recipe=wanted,
        target=target,
        destination=destination,
        calibration=loaded.train,
        samples=samples,
        labels=labels,
        began_s=began_s,
    )
    return result.to_json()


def export(work: Work, *, model: str, data: str, recipe: str, target: str, out: str) -> dict[str, Any]:
    """Quantizes an ONNX model or an exported PyTorch program to INT8, and verifies it."""
    began_s = time.monotonic()
    wanted = ew.Recipe.from_toml(recipe)
    destination = _checked_destination(out)
    work.plan({s: STEP_SECONDS[s] for s in _FINAL_STEPS})
    loaded = ew.Data.from_npz(data, seed=wanted.seed)
    samples, labels = _held_out(loaded)
    result = _deliver(
        work,
        title=Path(model).stem,
        floats=[("Float", model)],
        reference=model,
        recipe=wanted,
        target=target,
        destination=destination,
        calibration=loaded.train,
        samples=samples,
        labels=labels,
        began_s=began_s,
    )
    return result.to_json()


_FINAL_STEPS = (
    "trace",
    "calibrate",
    "quantize",
    "write",
    "verify: float",
    "verify: native",
    "verify: reference",
    "verify: onnxruntime",
    "measure",
)


def _leave_room() -> None:
    """Trains on half of the cores: the window, and what else a person does, need the others."""
    import torch

    torch.set_num_threads(max((os.cpu_count() or 2) // 2, 1))


def _recipe_steps(recipe: ew.Recipe) -> list[str]:
    return [s for s in ("distill", "prune", "finetune", "qat") if getattr(recipe, s) is not None]


def _teller(work: Work) -> ew.OnProgress:
    return lambda p: work.progress(p.step, p.done, p.total, p.metrics)


def _checked_destination(out: str) -> Path:
    destination = Path(out)
    if destination.exists() and not (destination / "manifest.json").is_file():
        raise TaskError(
            f"Cannot write {destination.name}",
            why=f"{destination} exists and is not an artifact",
            next_step="Choose another output, or move that away.",
        )
    return destination


def _checkpoint(destination: Path, *made_from: str | Path) -> Path:
    """Where a job keeps what it has trained, beside its result: a job cut off or failed goes on from there.

    Each work has its own, by the texts and files that it is made from.
    """
    parts = [each.read_bytes() if isinstance(each, Path) else each.encode() for each in made_from]
    digest = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()
    return destination.with_name(f"{destination.stem}.{digest[:12]}.checkpoint")


def _held_out(data: ew.Data) -> tuple[Samples, Labels]:
    import numpy as np

    batches = [(np.asarray(x, np.float32), np.asarray(y, np.int64)) for x, y in data.validation]
    return np.concatenate([x for x, _ in batches]), np.concatenate([y for _, y in batches])


def _deliver(
    work: Work,
    *,
    title: str,
    floats: Sequence[tuple[str, nn.Module | str]],
    reference: nn.Module | str,
    recipe: ew.Recipe,
    target: str,
    destination: Path,
    calibration: Any,
    samples: Samples,
    labels: Labels,
    began_s: float,
) -> Result:
    """Exports, verifies and measures, and puts the artifact in its place last of all."""
    tell = _teller(work)
    artifact = ew.export(
        reference,
        target=target or ew.detect(),
        calibration=calibration,
        out=work.scratch / destination.name,
        quantize=recipe.quantize,
        progress=tell,
    )
    report = ew.verify(
        artifact, reference=reference, cases=CASES, data=samples, seed=recipe.seed, progress=tell
    )
    (artifact.path / "report.json").write_text(report.to_json(), "utf-8")
    variants = _measure(work, floats, artifact, samples, labels)
    _move_into_place(artifact.path, destination, work.scratch)
    for kept in destination.parent.glob(f"{destination.stem}.{'[0-9a-f]' * 12}.checkpoint"):
        shutil.rmtree(kept, ignore_errors=True)
    return Result(
        title=title,
        variants=tuple(variants),
        artifact=str(destination),
        passed=report.passed,
        cases=report.cases,
        seconds=time.monotonic() - began_s,
        samples=len(labels),
    )


def _measure(
    work: Work,
    floats: Sequence[tuple[str, nn.Module | str]],
    artifact: ew.Artifact,
    samples: Samples,
    labels: Labels,
) -> list[Variant]:
    steps = len(floats) + 2
    work.progress("measure", 0, steps)
    port = artifact.inputs[0].name
    output = artifact.outputs[0].name
    predict: dict[str, Predict] = {}
    sizes: dict[str, int] = {}
    for index, (name, model) in enumerate(floats):
        path = _float_onnx(model, samples[:2], work.scratch / f"float{index}.onnx")
        predict[name] = _onnx_predict(path)
        sizes[name] = _stored_bytes(path)
        work.progress("measure", index + 1, steps)
    for name, backend in (("INT8, native engine", "native"), ("INT8, ONNX Runtime", "onnxruntime")):
        predict[name] = _runner_predict(ew.Runner(artifact, backend=backend), port, output)
        sizes[name] = artifact.files["weights.safetensors"].size_bytes
    one = samples[:1]
    timed = ew.measure({n: (lambda f=f: f(one)) for n, f in predict.items()}, rounds=MEASURE_ROUNDS)  # type: ignore[misc]
    work.progress("measure", steps - 1, steps)
    outputs = {name: f(samples) for name, f in predict.items()}
    base = floats[-1][0]
    variants = []
    for name, scores in outputs.items():
        quantized = name not in dict(floats)
        flips = int((scores.argmax(1) != outputs[base].argmax(1)).sum())
        variants.append(
            Variant(
                name=name,
                accuracy=float((scores.argmax(1) == labels).mean()),
                size_bytes=sizes[name],
                latency_ms=timed[name].median_ms,
                sqnr_db=ew.sqnr_db(outputs[base], scores) if quantized else None,
                flips=flips if quantized else None,
                note=f"SQNR and flips against “{base}”" if quantized else "Timed in ONNX Runtime, one thread",
            )
        )
    work.progress("measure", steps, steps)
    # The native engine comes last: it is what ships.
    variants.sort(key=lambda v: "native" in v.name)
    return variants


def _float_onnx(model: nn.Module | str, example: Samples, path: Path) -> Path:
    """The float model as an ONNX file with a free batch size."""
    import edgewright as ew

    if isinstance(model, str) and model.endswith(".onnx"):
        return Path(model)
    return ew.export_onnx(model, path, example_inputs=None if isinstance(model, str) else example).path


def _stored_bytes(path: Path) -> int:
    """Bytes of all weights in an ONNX file, wherever they are stored."""
    import math

    import onnx

    widths = {onnx.TensorProto.FLOAT: 4, onnx.TensorProto.FLOAT16: 2, onnx.TensorProto.BFLOAT16: 2}
    graph = onnx.load(str(path), load_external_data=False).graph
    return sum(math.prod(t.dims) * widths.get(t.data_type, 0) for t in graph.initializer)


def _onnx_predict(path: Path) -> Predict:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def predict(x: Samples) -> npt.NDArray[np.float32]:
        scores: npt.NDArray[np.float32] = session.run(None, {name: x})[0]
        return scores

    return predict


def _runner_predict(runner: ew.Runner, port: str, output: str) -> Predict:
    def predict(x: Samples) -> npt.NDArray[np.float32]:
        scores: npt.NDArray[np.float32] = runner.run({port: x})[output]
        return scores

    return predict


def _move_into_place(made: Path, destination: Path, scratch: Path) -> None:
    """Renames the artifact to its place; one that is there goes with the scratch directory."""
    if destination.exists():
        destination.rename(scratch / "replaced")
    made.rename(destination)
    folder = os.open(destination.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
