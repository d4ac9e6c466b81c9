"""The whole trip on real input: handwritten digits, from a trained teacher to a device that rolled back.

Everything is what a user would call: the public functions, the commands as processes, TUF, HTTP on loopback.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import urllib3
from rich.console import Console
from rich.table import Table

from edgewright import digits
from edgewright.compression import compress
from edgewright.console import progress_bar
from edgewright.errors import DemoError
from edgewright.exporting import export
from edgewright.float_onnx import export_onnx
from edgewright.latency import measure, onnx_call
from edgewright.process import Program
from edgewright.progress import OnProgress
from edgewright.publishing import publish
from edgewright.recipe import Recipe
from edgewright.training import evaluate, train
from edgewright.verification import verify
from edgewright.verification_report import VerificationReport
from edgewright_device import Artifact, Runner, detect, write_artifact
from edgewright_ota import Fleet, Release, Repository

CASES = 1000
EVENT_TIMEOUT_S = 30.0
DEVICE = "demo-device"
NAME = "digits"


@dataclass
class _Trip:
    """What the steps hand on to one another."""

    out: Path
    seed: int
    console: Console
    started: float
    result: dict[str, Any] = field(default_factory=dict)

    @contextmanager
    def step(self, title: str) -> Iterator[tuple[OnProgress, list[str]]]:
        """Shows one step while it runs, and a line with its findings when it is done."""
        begun = time.monotonic()
        findings: list[str] = []
        with progress_bar(self.console) as progress:
            yield progress, findings
        took = time.monotonic() - begun
        self.console.print(f"[green]✓[/] {title:<34} {'   '.join(findings):<54} [dim]{took:5.1f} s[/]")


def run_demo(out: Path, *, seed: int = 0, console: Console | None = None) -> dict[str, Any]:
    """Takes a model through every part of Edgewright.

    Args:
        out: A folder for all that is made; what an earlier run made there is replaced.
        seed: Fixes all training.
        console: Where progress is shown; nowhere if left out.

    Returns:
        The figures, as docs/guides/demo.md describes them.

    Raises:
        DemoError: A step did not end as it must, or `out` holds something else.
    """
    _prepare(out)
    trip = _Trip(out, seed, console or Console(quiet=True), time.monotonic())
    original = digits.load(seed)
    teacher, student, pruned = _compress(trip, original)
    artifact, report = _export_and_verify(trip, original, teacher, pruned)
    trip.result["accuracy"] = {
        "teacher": _accuracy(teacher, original),
        "student": _accuracy(student, original),
        "pruned": _accuracy(pruned, original),
        "int8_native": _artifact_accuracy(artifact, original, "native"),
        "int8_onnxruntime": _artifact_accuracy(artifact, original, "onnxruntime"),
    }
    with ExitStack() as running:
        agent, infer_url, fleet = _first_release(trip, running, artifact, report, original)
        updated, old_accuracy = _update(trip, agent, fleet, artifact, pruned)
        _broken_update(trip, agent, fleet, updated, infer_url)
        trip.result["update"]["accuracy_before"] = old_accuracy
    order = ("accuracy", "size_bytes", "latency_ms", "verify", "ota", "update", "rollback")
    return {key: trip.result[key] for key in order} | {"seconds": round(time.monotonic() - trip.started, 1)}


def _prepare(out: Path) -> None:
    marker = out / ".edgewright-demo"
    if out.exists():
        if any(out.iterdir()) and not marker.exists():
            raise DemoError(
                f"{out}: holds something else than an earlier demo; choose another folder with --out"
            )
        shutil.rmtree(out)
    out.mkdir(parents=True)
    marker.touch()


def _compress(trip: _Trip, data: digits.Digits) -> tuple[Any, Any, Any]:
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(trip.seed)
        untrained_teacher, untrained_student = digits.Teacher(), digits.Student()
    recipe = digits.recipe(trip.seed)
    with trip.step("train a teacher") as (progress, findings):
        teacher = train(untrained_teacher, data.data, digits.TEACHING, seed=trip.seed, progress=progress)
        findings.append(f"{100 * _accuracy(teacher, data):.2f} %   {_parameters(teacher):,} parameters")
    with trip.step("distil a student") as (progress, findings):
        distil = replace(recipe, prune=None, finetune=None)
        student = compress(untrained_student, distil, data=data.data, teacher=teacher, progress=progress)
        findings.append(f"{100 * _accuracy(student, data):.2f} %   {_parameters(student):,} parameters")
    with trip.step("prune and fine-tune it") as (progress, findings):
        prune = replace(recipe, distill=None)
        pruned = compress(student, prune, data=data.data, teacher=teacher, progress=progress)
        findings.append(f"{100 * _accuracy(pruned, data):.2f} %   {_parameters(pruned):,} parameters")
    return teacher, student, pruned


def _export_and_verify(
    trip: _Trip, data: digits.Digits, teacher: Any, pruned: Any
) -> tuple[Artifact, VerificationReport]:
    with trip.step("quantize to INT8 and export") as (progress, findings):
        artifact = export(
            pruned,
            target=detect(),
            calibration=data.data.train,
            out=trip.out / f"{NAME}.ew",
            progress=progress,
        )
        example = data.x_test[:2]
        floats = {
            "fp32": export_onnx(pruned, trip.out / "pruned.onnx", example_inputs=example, optimize=True),
            "teacher_fp32": export_onnx(
                teacher, trip.out / "teacher.onnx", example_inputs=example, optimize=True
            ),
        }
        sizes = {name: file.size_bytes for name, file in floats.items()} | {"artifact": artifact.size_bytes}
        trip.result["size_bytes"] = sizes
        findings.append(f"{sizes['fp32']:,} → {sizes['artifact']:,} bytes")
    with trip.step("measure latency") as (_, findings):
        x = data.x_test[:1]
        native, quantized = (Runner(artifact, backend=b) for b in ("native", "onnxruntime"))
        name = artifact.inputs[0].name
        times = measure(
            {
                "teacher_fp32_onnxruntime": onnx_call(floats["teacher_fp32"].path, [x]),
                "fp32_onnxruntime": onnx_call(floats["fp32"].path, [x]),
                "int8_onnxruntime": lambda: quantized.run({name: x}),
                "int8_native": lambda: native.run({name: x}),
            }
        )
        latency = {k: round(t.median_ms, 4) for k, t in times.items()}
        trip.result["latency_ms"] = latency
        findings.append(f"{latency['fp32_onnxruntime'] / latency['int8_native']:.2f} times faster than FP32")
    with trip.step(f"verify on {CASES:,} generated cases") as (progress, findings):
        report = verify(
            artifact, reference=pruned, cases=CASES, data=data.x_test, seed=trip.seed, progress=progress
        )
        (trip.out / "report.json").write_text(report.to_json(), "utf-8")
        trip.result["verify"] = {
            "cases": report.cases,
            "bit_mismatches": report.bit_mismatches,
            "prediction_flips": report.prediction_flips,
            "sqnr_db": round(report.sqnr_db, 2),
        }
        if not report.passed:
            raise DemoError(f"verification did not pass; see {trip.out / 'report.json'}")
        findings.append(
            f"values that differ: {report.bit_mismatches}   flipped predictions: {report.prediction_flips}"
        )
    return artifact, report


def _first_release(
    trip: _Trip, running: ExitStack, artifact: Artifact, report: VerificationReport, data: digits.Digits
) -> tuple[Program, str, Fleet]:
    """Publishes 1.0.0, starts server and agent, and waits until the agent has confirmed it and serves."""
    repository, device = trip.out / "repository", trip.out / "device"
    device.mkdir()
    with trip.step("publish 1.0.0, signed with TUF") as (_, findings):
        release = publish(artifact, report, repository=repository, version="1.0.0")
        findings.append(f"full package {_full(release):,} bytes")
    with trip.step("start server and agent; install") as (_, findings):
        server = running.enter_context(
            Program(
                "edgewright-ota",
                ["serve", "--repository", repository, "--port", "0"],
                log=trip.out / "server.log",
            )
        )
        address = server.wait_for(lambda line: "url" in line, timeout_s=EVENT_TIMEOUT_S)
        fleet = Fleet(address["url"], Path(address["token_file"]).read_text("ascii").strip())
        token = device / "token"
        token.touch(0o600)
        token.write_text(fleet.add_device(DEVICE), "ascii")
        root = device / "root.json"
        root.write_bytes(Repository.open(repository).root_bytes)
        agent = running.enter_context(
            Program(
                "edgewright-agent",
                [
                    *("run", "--state", device / "state", "--server", address["url"], "--device", DEVICE),
                    *("--token-file", token, "--root", root, "--listen", "127.0.0.1:0", "--interval", "0.1"),
                ],
                log=trip.out / "agent.log",
            )
        )
        url = str(agent.wait_for(lambda line: line["event"] == "listening", timeout_s=EVENT_TIMEOUT_S)["url"])
        fleet.start_rollout(NAME, "1.0.0")
        findings.append(_confirmed(agent, "1.0.0"))
    with trip.step("serve an inference") as (_, findings):
        x = data.x_test[:1]
        answer = _infer(url, artifact, x)
        expected = Runner(artifact).run({artifact.inputs[0].name: x})[artifact.outputs[0].name]
        if answer.tobytes() != expected.tobytes():
            raise DemoError("the device's answer differs from the native engine's here")
        findings.append(f"a {answer.argmax()} (truth: {data.y_test[0]}), same bits as here")
    return agent, url, fleet


def _update(trip: _Trip, agent: Program, fleet: Fleet, old: Artifact, model: Any) -> tuple[Artifact, float]:
    """Fine-tunes on shifted scans, publishes 1.1.0 as a delta, and waits until the agent has confirmed it."""
    shifted = digits.shifted(trip.seed)
    before = _artifact_accuracy(old, shifted, "native")
    with trip.step("fine-tune on shifted scans") as (progress, findings):
        recipe = Recipe(name="digits-shifted", seed=trip.seed, finetune=digits.ADAPTING)
        adapted = compress(model, recipe, data=shifted.data, progress=progress)
        updated = export(
            adapted,
            target=detect(),
            calibration=shifted.data.train,
            out=trip.out / "update" / f"{NAME}.ew",
            base=old,
            progress=progress,
        )
        after = _artifact_accuracy(updated, shifted, "native")
        findings.append(f"{100 * before:.2f} → {100 * after:.2f} % on them")
    with trip.step("verify, publish 1.1.0 as a delta") as (progress, findings):
        report = verify(
            updated, reference=adapted, cases=CASES, data=shifted.x_test, seed=trip.seed, progress=progress
        )
        release = publish(updated, report, repository=trip.out / "repository", version="1.1.0")
        full, delta = _full(release), _delta(release)
        trip.result["ota"] = {
            "full_bytes": full,
            "delta_bytes": delta,
            "saving": round(1 - delta / full, 4),
        }
        findings.append(f"{full:,} → {delta:,} bytes ({100 * (1 - delta / full):.0f} % saved)")
    with trip.step("the device updates") as (_, findings):
        fleet.start_rollout(NAME, "1.1.0")
        findings.append(_confirmed(agent, "1.1.0"))
    slot = trip.out / "device" / "state" / "slots" / "b"
    if Artifact.open(slot).digest != updated.digest:
        raise DemoError(f"{slot}: is not the artifact that was published")
    trip.result["update"] = {"accuracy_after": after}
    return updated, before


def _broken_update(trip: _Trip, agent: Program, fleet: Fleet, good: Artifact, infer_url: str) -> None:
    """Signs and rolls out 1.2.0 with damaged weights, and waits until the agent has gone back by itself."""
    with trip.step("publish a broken 1.2.0") as (_, findings):
        weights = safetensors.numpy.load(good.read("weights.safetensors"))
        damaged = {k: -w if w.dtype == np.int8 else w for k, w in weights.items()}
        files = {name: good.read(name) for name in good.files}
        files["weights.safetensors"] = safetensors.numpy.save(dict(sorted(damaged.items())))
        broken = write_artifact(
            trip.out / "broken" / f"{NAME}.ew",
            name=good.name,
            producer=good.producer,
            targets=good.targets,
            inputs=good.inputs,
            outputs=good.outputs,
            files=files,
        )
        # `publish` would refuse it; an operator with the keys and a bad day would not.
        Repository.open(trip.out / "repository").publish(broken.path, name=NAME, version="1.2.0")
        findings.append("weights negated, signed all the same")
    with trip.step("the device refuses it") as (_, findings):
        fleet.start_rollout(NAME, "1.2.0")
        event = agent.wait_for(lambda line: line["event"] == "rolled_back", timeout_s=EVENT_TIMEOUT_S)
        answer = json.loads(urllib3.PoolManager().request("GET", f"{infer_url}/status").data)
        if answer["release"]["version"] != "1.1.0":
            raise DemoError(f"after the rollback the device serves {answer}")
        trip.result["rollback"] = {"from": event["version"], "to": event["to"], "reason": event["reason"]}
        findings.append(f"back on {event['to']}, and says why")


def _confirmed(agent: Program, version: str) -> str:
    event = agent.wait_for(
        lambda line: line["event"] in {"confirmed", "rolled_back", "error"}, timeout_s=EVENT_TIMEOUT_S
    )
    if event["event"] != "confirmed" or event["version"] != version:
        raise DemoError(f"the agent did not confirm {version}: {event}")
    return f"slot {event['slot'].upper()}, golden vectors replayed"


def _infer(url: str, artifact: Artifact, x: Any) -> Any:
    body = safetensors.numpy.save({artifact.inputs[0].name: x})
    answer = urllib3.PoolManager().request("POST", f"{url}/infer", body=body)
    if answer.status != 200:
        raise DemoError(f"the device answered {answer.status}: {answer.data[:200]!r}")
    return safetensors.numpy.load(answer.data)[artifact.outputs[0].name]


def _full(release: Release) -> int:
    return next(p.size_bytes for p in release.packages if p.base is None)


def _delta(release: Release) -> int:
    return min(p.size_bytes for p in release.packages if p.base is not None)


def _accuracy(model: Any, data: digits.Digits) -> float:
    import torch

    return evaluate(model, [(torch.from_numpy(data.x_test), torch.from_numpy(data.y_test))])


def _artifact_accuracy(artifact: Artifact, data: digits.Digits, backend: str) -> float:
    outputs = Runner(artifact, backend=backend).run({artifact.inputs[0].name: data.x_test})
    return float(np.mean(outputs[artifact.outputs[0].name].argmax(1) == data.y_test))


def _parameters(model: Any) -> int:
    return sum(p.numel() for p in model.parameters())


def show(result: dict[str, Any], console: Console) -> None:
    """Prints the figures as a table."""
    accuracy, size, latency, ota = (result[k] for k in ("accuracy", "size_bytes", "latency_ms", "ota"))
    table = Table("network", "engine", "accuracy", "bytes", "latency, median", title="Handwritten digits")
    for column in (2, 3, 4):
        table.columns[column].justify = "right"

    def row(network: str, engine: str, correct: float, bytes_: int | None, ms: float | None) -> None:
        table.add_row(
            network,
            engine,
            f"{100 * correct:.2f} %",
            f"{bytes_:,}" if bytes_ else "",
            f"{1000 * ms:.0f} µs" if ms else "",
        )

    row(
        "teacher",
        "ONNX Runtime FP32",
        accuracy["teacher"],
        size["teacher_fp32"],
        latency["teacher_fp32_onnxruntime"],
    )
    row("student", "", accuracy["student"], None, None)
    row("student, pruned", "ONNX Runtime FP32", accuracy["pruned"], size["fp32"], latency["fp32_onnxruntime"])
    row(
        "  in INT8",
        "ONNX Runtime",
        accuracy["int8_onnxruntime"],
        size["artifact"],
        latency["int8_onnxruntime"],
    )
    row("  in INT8", "Edgewright native", accuracy["int8_native"], size["artifact"], latency["int8_native"])
    console.print()
    console.print(table)
    check, back, update = result["verify"], result["rollback"], result["update"]
    facts = Table.grid(padding=(0, 2))
    facts.add_row(
        "verified",
        f"{check['cases']:,} cases, {check['bit_mismatches']} bit mismatches, "
        f"{check['prediction_flips']} prediction flips, SQNR {check['sqnr_db']:.1f} dB",
    )
    facts.add_row(
        "update 1.1.0",
        f"{ota['delta_bytes']:,} of {ota['full_bytes']:,} bytes sent ({100 * ota['saving']:.1f} % saved); "
        f"shifted scans {100 * update['accuracy_before']:.2f} → {100 * update['accuracy_after']:.2f} %",
    )
    facts.add_row("rolled back", f"{back['from']} → {back['to']}: {back['reason']}")
    facts.add_row("took", f"{result['seconds']:.1f} s on {os.cpu_count()} cores")
    console.print(facts)
