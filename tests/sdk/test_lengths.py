"""Lengths: one quantization, a program for each length, and padding only where it changes no bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.numpy
import torch
from minilm import Layer
from onnx import helper, numpy_helper
from torch import Tensor, nn

from edgewright.errors import ExportError
from edgewright.exporting import export
from edgewright.graph import float_function
from edgewright.progress import Progress
from edgewright.statistics import sqnr_db
from edgewright.verification import verify
from edgewright_device import Artifact, ArtifactError, Runner, health, replay, write_artifact
from sdk.graphs import normal, rng, saved

TARGET = "x86-64"
SIZES = (6, 16)


class Tagger(nn.Module):
    """An encoder that tags each token, and the mean of them all; ids and mask, int64 (N, length)."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(40, 16), nn.Embedding(32, 16)
        self.norm, self.layer = nn.LayerNorm(16), Layer(16, 2, 32, 1e-5)
        self.tags, self.head = nn.Linear(16, 5), nn.Linear(16, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        x = self.norm(self.words(ids) + self.places(torch.arange(ids.shape[1])))
        x = self.layer(x, mask[:, None, None, :].to(torch.bool))
        weight = mask[:, :, None].to(x.dtype)
        return self.tags(x), self.head((x * weight).sum(1) / weight.sum(1))


class Leaky(Tagger):
    """The same, but its mean counts what the mask hides."""

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        x = self.norm(self.words(ids) + self.places(torch.arange(ids.shape[1])))
        x = self.layer(x, mask[:, None, None, :].to(torch.bool))
        return self.tags(x), self.head(x.mean(1))


def tokens(count: int, seed: int = 0) -> dict[str, Any]:
    random = rng(seed)
    mask = (np.arange(SIZES[-1]) < random.integers(1, SIZES[-1] + 1, count)[:, None]).astype(np.int64)
    return {"ids": random.integers(1, 40, mask.shape) * mask, "mask": mask}


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return make().eval()


Made = tuple[Artifact, nn.Module, list[Progress]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    net, seen = seeded(Tagger), list[Progress]()
    out = tmp_path_factory.mktemp("lengths") / "tagger.ew"
    artifact = export(
        net, target=TARGET, calibration=tokens(200), out=out, lengths=SIZES, progress=seen.append
    )
    return artifact, net, seen


def cut(x: dict[str, Any], length: int) -> dict[str, Any]:
    return {n: np.ascontiguousarray(v[:, :length]) for n, v in x.items()}


@pytest.mark.parametrize("length", [1, 2, 5, 6, 7, 11, 15, 16])
def test_any_length_has_the_bits_of_the_reference_and_is_near_the_float_model(
    made: Made, length: int
) -> None:
    artifact, net, _ = made
    x = cut(tokens(20, seed=5), length)
    got, exact = (Runner(artifact, backend).run(x) for backend in ("native", "reference"))
    assert {n: v.shape for n, v in got.items()} == {"y0": (20, length, 5), "y1": (20, 3)}
    kept = x["mask"].astype(bool)
    for name, want in zip(("y0", "y1"), float_function(net)([x["ids"], x["mask"]]), strict=True):
        assert got[name].tobytes() == exact[name].tobytes()
        assert got[name].flags.c_contiguous
        chosen = kept if name == "y0" else slice(None)
        assert sqnr_db(want[chosen], got[name][chosen]) > 20


def test_a_sequence_has_the_same_bits_in_every_program(made: Made) -> None:
    """The same tokens, and as many zeros behind them as one likes."""
    runner, x = Runner(made[0]), cut(tokens(30, seed=6), 4)
    alone = runner.run(x)
    for length in (5, 6, 7, 12, 16):
        wider = {n: np.pad(v, ((0, 0), (0, length - 4))) for n, v in x.items()}
        got = runner.run(wider)
        np.testing.assert_array_equal(got["y1"], alone["y1"])
        np.testing.assert_array_equal(got["y0"][:, :4], alone["y0"])


def test_what_was_found_out_about_padding_is_told(made: Made) -> None:
    assert [p.note for p in made[2] if p.note] == [
        "any length up to 16 is taken: padding behind the mask 'mask' changes no bit"
    ]


def test_the_programs_share_their_weights(made: Made, tmp_path: Path) -> None:
    artifact, net, _ = made
    alone = export(net, target=TARGET, calibration=tokens(200), out=tmp_path / "one.ew")
    both, one = (safetensors.numpy.load(a.read("weights.safetensors")) for a in (artifact, alone))
    for name, value in one.items():
        np.testing.assert_array_equal(both[name], value)
    own = {n: v for n, v in both.items() if n not in one}
    assert own, "the places of a shorter sequence"
    assert all(n.endswith(".6") for n in own)
    assert sum(v.nbytes for v in own.values()) <= 2 * 6 * 16
    assert set(artifact.files) == {*alone.files, "plan-6.bin"}


def test_ports_and_manifest_say_which_axis_is_free(made: Made) -> None:
    artifact, _, _ = made
    assert [p.shape for p in artifact.inputs] == [(None, None), (None, None)]
    assert [p.shape for p in artifact.outputs] == [(None, None, 5), (None, 3)]
    data = json.loads((artifact.path / "manifest.json").read_text())
    assert (data["format"], data["lengths"]) == (2, {"sizes": [6, 16], "mask": "mask"})


def test_lengths_that_cannot_be_are_named(made: Made) -> None:
    runner, x = Runner(made[0]), tokens(2)
    long = {n: np.concatenate([v, v], 1) for n, v in x.items()}
    with pytest.raises(ValueError, match="input 'ids': length 32, this model takes 1 to 16"):
        runner.run(long)
    with pytest.raises(ValueError, match=r"the inputs differ in length: \{'ids': 16, 'mask': 8\}"):
        runner.run({**x, "mask": x["mask"][:, :8]})
    with pytest.raises(ValueError, match=r"input 'ids': shape \(2, 0\), \(N, length\) with N >= 1"):
        runner.run(cut(x, 0))


def test_programs_are_packed_when_they_are_first_needed(made: Made) -> None:
    runner: Any = Runner(made[0])
    assert not runner._backend._loaded
    runner.run(cut(tokens(1), 3))
    runner.run(cut(tokens(1), 6))
    assert list(runner._backend._loaded) == [6]


def test_onnx_runtime_takes_the_largest_and_pads_the_rest(made: Made) -> None:
    x = cut(tokens(20, seed=7), 9)
    got, native = (Runner(made[0], b).run(x) for b in ("onnxruntime", "native"))
    assert got["y0"].shape == (20, 9, 5)
    assert sqnr_db(native["y1"], got["y1"]) > 25


def test_golden_vectors_of_each_length_are_replayed(made: Made, tmp_path: Path) -> None:
    artifact, _, _ = made
    for length in SIZES:
        inputs, outputs = artifact.golden(length)
        assert inputs["ids"].shape[1] == outputs["y0"].shape[1] == length
    assert replay(Runner(artifact)) == replay(Runner(artifact, "onnxruntime")) == ""
    files = {n: artifact.read(n) for n in artifact.files}
    files["plan-6.bin"] = files["plan.bin"]
    wrong = write_artifact(
        tmp_path / "wrong.ew",
        name=artifact.name,
        producer=artifact.producer,
        targets=artifact.targets,
        inputs=artifact.inputs,
        outputs=artifact.outputs,
        files=files,
        lengths=artifact.lengths,
    )
    assert "plan-6.bin: its inputs are" in health.check(wrong.path).reason


def test_verification_covers_every_length(made: Made) -> None:
    artifact, net, _ = made
    steps: list[str] = []
    report = verify(
        artifact, reference=net, data=tokens(50, seed=8), cases=60, progress=lambda p: steps.append(p.step)
    )
    assert report.bit_mismatches == 0
    assert {f"verify: native, length {n}" for n in (1, 5, 6)} <= set(steps)
    verdicts = {c.name: c.verdict for c in report.checks if c.name != "onnx"}
    assert set(verdicts.values()) == {"passed"}
    assert {
        "golden",
        "bits",
        "range",
        "coverage",
        "mask",
        "padding",
        "sqnr",
        "program",
        "weights",
        "operators",
    } <= set(verdicts)


def test_an_update_keeps_the_grids_of_its_base_at_every_length(made: Made, tmp_path: Path) -> None:
    artifact, net, _ = made
    fewer = {n: v[:120] for n, v in tokens(200).items()}
    again = export(net, target=TARGET, calibration=fewer, out=tmp_path / "t.ew", lengths=SIZES, base=artifact)
    assert again.lengths == artifact.lengths
    assert [p.scale for p in again.outputs] == [p.scale for p in artifact.outputs]
    x = cut(tokens(9, seed=4), 4)
    for name, value in Runner(artifact).run(x).items():
        np.testing.assert_array_equal(Runner(again).run(x)[name], value)


# Padding that would not be honest


def test_a_model_that_counts_its_padding_takes_exact_lengths_alone(tmp_path: Path) -> None:
    notes: list[str] = []
    made = export(
        seeded(Leaky),
        target=TARGET,
        calibration=tokens(200),
        out=tmp_path / "leaky.ew",
        lengths=SIZES,
        progress=lambda p: notes.append(p.note),
    )
    assert made.lengths is not None
    assert made.lengths.mask is None
    (note,) = filter(None, notes)
    assert note.startswith("only the lengths 6, 16 are taken: padding behind the mask 'mask' changes results")
    runner, x = Runner(made), tokens(3)
    for length in SIZES:
        exact = Runner(made, "reference").run(cut(x, length))
        assert runner.run(cut(x, length))["y1"].tobytes() == exact["y1"].tobytes()
    with pytest.raises(ValueError, match="length 5, this model takes 6 or 16; it has no mask"):
        runner.run(cut(x, 5))
    with pytest.raises(
        ExportError, match="padding that the mask 'mask' hides changes the results: output 'y1'"
    ):
        export(
            seeded(Leaky),
            target=TARGET,
            calibration=tokens(200),
            out=tmp_path / "b.ew",
            lengths=SIZES,
            mask="mask",
        )


def lines(symbol: str = "L") -> onnx.ModelProto:
    """A convolution along a sequence of any length, without a mask: (N, 3, L) to (N, 4, L)."""
    tensor = helper.make_tensor_value_info
    made = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1], name="conv")],
        "lines",
        [tensor("x", onnx.TensorProto.FLOAT, ["N", 3, symbol])],
        [tensor("y", onnx.TensorProto.FLOAT, ["N", 4, symbol])],
        [numpy_helper.from_array(normal(4, 3, 3), "w")],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


@pytest.mark.parametrize("how", [{"axes": {"x": 2}}, {"mask": "mask"}])
def test_what_is_said_of_sequences_needs_their_lengths(tmp_path: Path, how: dict[str, Any]) -> None:
    net = seeded(lambda: nn.Linear(4, 2))
    with pytest.raises(ExportError, match="give their lengths too"):
        export(net, target=TARGET, calibration=normal(9, 4), out=tmp_path / "n", **how)


def test_a_file_with_a_free_size_needs_no_axes(tmp_path: Path) -> None:
    path = saved(lines(), tmp_path / "lines.onnx")
    made = export(path, target=TARGET, calibration=normal(50, 3, 12), out=tmp_path / "m.ew", lengths=(12, 8))
    assert [p.shape for p in (*made.inputs, *made.outputs)] == [(None, 3, None), (None, 4, None)]
    x = normal(5, 3, 8, seed=4)
    got = Runner(made).run({"x": x})["y"]
    assert sqnr_db(float_function(path)([x])[0], got) > 25
    with pytest.raises(ValueError, match="length 9, this model takes 8 or 12"):
        Runner(made).run({"x": normal(5, 3, 9)})


def test_a_module_says_where_its_sequences_are(tmp_path: Path) -> None:
    net = seeded(lambda: nn.Conv1d(3, 4, 3, padding=1))
    made = export(
        net,
        target=TARGET,
        calibration={"input": normal(50, 3, 12)},
        out=tmp_path / "m.ew",
        lengths=(8, 12),
        axes={"input": 2},
    )
    assert made.inputs[0].shape == (None, 3, None)
    with pytest.raises(ExportError, match=r"axes are for \['x'\]; the model takes \['input'\]"):
        export(
            net, target=TARGET, calibration=normal(9, 3, 12), out=tmp_path / "n", lengths=(8,), axes={"x": 2}
        )


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"lengths": ()}, "1 to 16 positive ones are needed"),
        ({"lengths": (0, 8)}, "1 to 16 positive ones are needed"),
        ({"lengths": range(1, 18)}, "1 to 16 positive ones are needed"),
        (
            {"lengths": (8, 12), "backend": "onnxruntime"},
            "lengths are for the native engine",
        ),
        ({"lengths": (8, 12), "mask": "m"}, r"mask 'm': the inputs with a length are \['x'\]"),
        ({"lengths": (8, 16)}, r"'x' has shape \(50, 3, 12\); \(samples, 3, 16\) is needed"),
    ],
)
def test_lengths_that_are_none_are_refused(tmp_path: Path, how: dict[str, Any], message: str) -> None:
    path = saved(lines(), tmp_path / "lines.onnx")
    with pytest.raises(ExportError, match=message):
        export(path, target=TARGET, calibration=normal(50, 3, 12), out=tmp_path / "m.ew", **how)


def test_a_file_without_a_free_size_is_refused(tmp_path: Path) -> None:
    fixed = lines()
    fixed.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 12
    with pytest.raises(ExportError, match="the inputs have no free size but the batch"):
        export(
            saved(fixed, tmp_path / "m.onnx"),
            target=TARGET,
            calibration=normal(50, 3, 12),
            out=tmp_path / "m.ew",
            lengths=(8, 12),
        )


# Untrusted lengths

CHANGES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "none": (lambda m: m["lengths"].update(sizes=[]), "1 to 16 sizes"),
    "too many": (lambda m: m["lengths"].update(sizes=list(range(1, 19))), "1 to 16 sizes"),
    "descending": (lambda m: m["lengths"].update(sizes=[16, 6]), "ascending"),
    "twice": (lambda m: m["lengths"].update(sizes=[6, 6, 16]), "ascending"),
    "zero": (lambda m: m["lengths"].update(sizes=[0, 16]), "0 is not a whole number from 1"),
    "huge": (lambda m: m["lengths"].update(sizes=[6, 2**21]), "not a whole number"),
    "another mask": (lambda m: m["lengths"].update(mask="y1"), "'y1' is no input with a length"),
    "a mask of another kind": (lambda m: m["lengths"].update(mask=3), "not a name"),
    "no input": (lambda m: [p.update(shape=[None, 16]) for p in m["inputs"]], "no input has one"),
    "two free sizes": (
        lambda m: m["outputs"][0].update(shape=[None, None, None]),
        "of which one may be null",
    ),
    "free without lengths": (lambda m: m.pop("lengths"), "either parts or lengths|1 to 7 sizes"),
    "a program missing": (lambda m: m["files"].pop("plan-6.bin"), "plan-6.bin is listed without"),
    "a program too many": (lambda m: m["lengths"].update(sizes=[16]), "plan-6.bin is listed without"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_manifest_whose_lengths_break_a_rule_is_refused(made: Made, tmp_path: Path, name: str) -> None:
    change, message = CHANGES[name]
    data = json.loads((made[0].path / "manifest.json").read_text())
    change(data)
    (tmp_path / "m.ew").mkdir()
    (tmp_path / "m.ew" / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(ArtifactError, match=rf"manifest\.json: .*({message})"):
        Artifact.open(tmp_path / "m.ew")
