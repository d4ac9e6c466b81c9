"""An artifact in parts: exact where it is native, held to its golden values, and trusted in nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from device.tiny import CLASSES, X_SCALE, running_sums, samples, tiny_artifact, tiny_in_parts
from edgewright_device import (
    Artifact,
    ArtifactError,
    Runner,
    RunnerError,
    encode_golden,
    health,
    replay,
    write_artifact,
)


@pytest.fixture
def tiny(tmp_path: Path) -> Artifact:
    return tiny_in_parts(tmp_path / "tiny.ew")


def changed(artifact: Artifact, files: dict[str, bytes], **fields: Any) -> Artifact:
    kept = {n: artifact.read(n) for n in artifact.files}
    return write_artifact(
        artifact.path,
        **{
            "name": artifact.name,
            "producer": artifact.producer,
            "targets": artifact.targets,
            "inputs": artifact.inputs,
            "outputs": artifact.outputs,
            "parts": artifact.parts,
            **fields,
        },
        files={**kept, **files},
    )


@pytest.mark.parametrize("onnx_first", [False, True])
def test_arrays_go_from_part_to_part(tmp_path: Path, onnx_first: bool) -> None:
    artifact = tiny_in_parts(tmp_path / "tiny.ew", onnx_first=onnx_first)
    whole = Runner(tiny_artifact(tmp_path / "whole.ew"))
    x = samples(5, seed=3)
    if onnx_first:
        want = whole.run({"x": np.cumsum(x, 1, np.float32)})["y"]
    else:
        want = np.cumsum(whole.run({"x": x})["y"], 1, np.float32)
    for backend in ("native", "reference"):
        runner = Runner(artifact, backend)
        got = runner.run({"x": x})
        assert got.keys() == {"y"}
        np.testing.assert_allclose(got["y"], want, rtol=1e-6)
        assert replay(runner) == ""


def test_mistakes_of_the_caller_are_named_as_ever(tiny: Artifact) -> None:
    with pytest.raises(ValueError, match=r"input 'x': shape \(2, 3\), \(N, 16\) with N >= 1"):
        Runner(tiny).run({"x": samples(2)[:, :3]})


def test_format_2_is_written_for_parts_alone(tiny: Artifact, tmp_path: Path) -> None:
    plain = tiny_artifact(tmp_path / "plain.ew")
    formats = [json.loads((a.path / "manifest.json").read_text())["format"] for a in (tiny, plain)]
    assert formats == [2, 1]
    assert Artifact.open(tiny.path).parts == tiny.parts


# The health check


def test_a_good_artifact_in_parts_is_confirmed(tiny: Artifact) -> None:
    assert health.check(tiny.path).passed


def test_one_bit_of_difference_in_a_native_part_fails(tiny: Artifact) -> None:
    values = tiny.golden_values()
    values["m"][2, 1] = np.nextafter(values["m"][2, 1], np.float32(9))
    changed(
        tiny, {"golden.npz": encode_golden({"x": values["x"]}, {"y": values["y"]}, values={"m": values["m"]})}
    )
    found = health.check(tiny.path)
    assert not found.passed
    assert found.reason == "part-0.bin: 1 of 40 values of 'm' do not equal the golden ones bit for bit"


def test_a_part_of_onnx_runtime_is_held_to_its_tolerance(tiny: Artifact) -> None:
    nearly = changed(tiny, {"part-1.onnx": running_sums("m", "y", CLASSES, factor=1 + 5e-5)})
    assert health.check(nearly.path).passed
    wrong = changed(nearly, {"part-1.onnx": running_sums("m", "y", CLASSES, factor=1.001)})
    found = health.check(wrong.path)
    assert not found.passed
    assert "part-1.onnx: " in found.reason
    assert "values of 'y' do not equal the golden ones within" in found.reason


def test_golden_vectors_without_what_passes_between_parts_fail(tiny: Artifact) -> None:
    inputs, outputs = tiny.golden()
    changed(tiny, {"golden.npz": encode_golden(inputs, outputs)})
    assert "holds nothing of 'm'" in health.check(tiny.path).reason


# Untrusted parts


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (running_sums("other", "y", CLASSES), "its inputs are other, the manifest lists others"),
        (running_sums("m", "other", CLASSES), "its outputs are other, the manifest lists others"),
        (b"no graph", "ONNX Runtime cannot load it"),
    ],
)
def test_a_graph_that_is_not_the_listed_part_is_refused(tiny: Artifact, file: bytes, message: str) -> None:
    with pytest.raises(RunnerError, match=rf"part-1\.onnx: .*{message}"):
        Runner(changed(tiny, {"part-1.onnx": file}))


def test_a_program_that_is_not_the_listed_part_is_refused(tiny: Artifact, tmp_path: Path) -> None:
    other = tiny_artifact(tmp_path / "other.ew").read("plan.bin")
    made = changed(tiny, {"part-0.bin": other})
    with pytest.raises(RunnerError, match=r"part-0\.bin: its outputs are .*'y'"):
        Runner(made)
    with pytest.raises(RunnerError, match=r"part-0\.bin: .*its header says"):
        Runner(changed(made, {"part-0.bin": other[:-1]}))


def test_a_part_that_gives_another_shape_is_found_out_in_the_run(tmp_path: Path) -> None:
    artifact = tiny_in_parts(tmp_path / "tiny.ew", onnx_first=True)
    inputs = artifact.inputs[0]
    small = replace(inputs, shape=(None, 7), scale=X_SCALE)
    made = changed(artifact, {"part-0.onnx": running_sums("x", "m", 7)}, inputs=(small,))
    with pytest.raises(RunnerError, match=r"part-0\.onnx: gives 'm' of shape \(3, 7\), not \(3, 16\)"):
        Runner(made).run({"x": samples(3)[:, :7]})


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "format 1": (lambda m: m.update(format=1), "is listed without being needed"),
    "one part": (lambda m: m["parts"].pop(), "2 to 64 parts"),
    "no list": (lambda m: m.update(parts=3), "3 is not a list"),
    "too many": (lambda m: m.update(parts=m["parts"] * 40), "2 to 64 parts|must be in"),
    "another file": (lambda m: m["parts"][0].update(plan="../part-0.bin"), "part 0 must be in 'part-0.bin'"),
    "a file twice": (lambda m: m["parts"][1].update(onnx="part-0.onnx"), "part 1 must be in 'part-1.onnx'"),
    "two files": (lambda m: m["parts"][0].update(onnx="part-0.onnx"), "part 0 must be in"),
    "no program": (
        lambda m: m.update(parts=[{**m["parts"][1], "onnx": "part-0.onnx"}, m["parts"][1]]),
        "no part is an integer program",
    ),
    "no file": (lambda m: m["parts"][0].pop("plan"), "'onnx' is missing"),
    "read before it is given": (
        lambda m: m["parts"][0].update(inputs=["y"]),
        "reads 'y', which nothing before",
    ),
    "read and never given": (lambda m: m["parts"][1].update(inputs=["q"]), "reads 'q', which nothing"),
    "given twice": (lambda m: m["parts"][1].update(outputs=["m"]), "gives 'm', which is given before"),
    "an input given": (lambda m: m["parts"][0].update(outputs=["x"]), "gives 'x', which is given before"),
    "an output never given": (lambda m: m["parts"][1].update(outputs=["z"]), "no part gives the output 'y'"),
    "nothing read": (lambda m: m["parts"][0].update(inputs=[]), "1 to 64 inputs"),
    "read twice": (lambda m: m["parts"][0].update(inputs=["x", "x"]), "none twice"),
    "a name that is none": (lambda m: m["parts"][0].update(inputs=[""]), "not a name"),
    "a name of another kind": (lambda m: m["parts"][0].update(inputs=[3]), "not a name"),
    "a long name": (lambda m: m["parts"][0].update(outputs=["m" * 256]), "not a name"),
    "65 names": (lambda m: m["parts"][0].update(outputs=[str(i) for i in range(65)]), "1 to 64 inputs"),
    "no operators": (lambda m: m["parts"][1].update(operators=[]), "1 to 64 operators"),
    "operators of another kind": (lambda m: m["parts"][1].update(operators=["a\nb"]), "is not of the form"),
    "no tolerance": (lambda m: m["parts"][1].pop("tolerance"), "'tolerance' is missing"),
    "a tolerance of nothing": (lambda m: m["parts"][1].update(tolerance=0), "tolerance 0.0 is not above 0"),
    "a tolerance of everything": (lambda m: m["parts"][1].update(tolerance=1), "at most 0.05"),
    "a tolerance that is none": (lambda m: m["parts"][1].update(tolerance=float("nan")), "tolerance nan"),
    "a part unlisted": (lambda m: m["files"].pop("part-0.bin"), "part-0.bin is listed without being needed"),
    "a part too many": (
        lambda m: m["files"].update({"part-2.bin": m["files"]["part-0.bin"]}),
        "part-2.bin is listed without being needed",
    ),
    "a plan beside them": (
        lambda m: m["files"].update({"plan.bin": m["files"]["part-0.bin"]}),
        "plan.bin is listed without being needed",
    ),
    "a number with a zero in front": (
        lambda m: m["files"].update({"part-00.bin": m["files"]["part-0.bin"]}),
        "lists 'part-00.bin', which no artifact has",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_manifest_whose_parts_break_a_rule_is_refused(tiny: Artifact, name: str) -> None:
    change, message = CHANGES[name]
    file = tiny.path / "manifest.json"
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))
    with pytest.raises(ArtifactError, match=rf"manifest\.json: .*({message})"):
        Artifact.open(tiny.path)
