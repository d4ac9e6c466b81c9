"""Export: any form of calibration, the same bytes each time, and no artifact that could not run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.numpy
import torch
from torch import Tensor, nn

from edgewright import float_onnx, golden
from edgewright.errors import ExportError
from edgewright.exporting import export
from edgewright.float_onnx import export_onnx
from edgewright.graph import float_function, onnx_function
from edgewright.progress import Progress
from edgewright.recipe import Quantize
from edgewright.statistics import sqnr_db
from edgewright.verification import verify
from edgewright_device import Artifact, ArtifactError, Runner, RunnerError, Target, TargetError, artifact
from sdk.graphs import graph, mlp, normal, rng, saved

X = normal(200, 8, seed=9)
TARGET = "x86-64"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(mlp(), tmp_path_factory.mktemp("model") / "mlp.onnx")


@pytest.fixture(scope="module")
def exported(model: Path) -> Artifact:
    return export(model, target=TARGET, calibration=X, out=model.parent / "mlp.ew")


def test_an_artifact_runs_everywhere_and_is_near_the_float_model(exported: Artifact, model: Path) -> None:
    x = normal(100, 8, seed=10)
    (want,) = float_function(model)([x])
    native = Runner(exported).run({"x": x})["y"]
    assert native.tobytes() == Runner(exported, "reference").run({"x": x})["y"].tobytes()
    assert sqnr_db(want, native) > 20
    assert sqnr_db(native, Runner(exported, "onnxruntime").run({"x": x})["y"]) > 25
    assert (exported.name, exported.targets) == ("mlp", (TARGET,))


def test_a_layer_that_gives_only_zeros_is_named(tmp_path: Path) -> None:
    dead = mlp()
    (bias,) = (each for each in dead.graph.initializer if each.name == "b1")
    bias.CopyFrom(onnx.numpy_helper.from_array(np.full(16, -1000, np.float32), "b1"))
    for given, notes in (
        (mlp(), []),
        (dead, ["dead, as these values are zero for all calibration samples: r"]),
    ):
        said: list[Progress] = []
        path = saved(given, tmp_path / "m.onnx")
        export(path, target=TARGET, calibration=X, out=tmp_path / "m.ew", progress=said.append)
        assert [each.note for each in said if each.note] == notes


def test_ports_say_what_calibration_saw(exported: Artifact) -> None:
    (x,), (y,) = exported.inputs, exported.outputs
    assert (x.shape, y.shape) == ((None, 8), (None, 4))
    assert (x.minimum, x.maximum) == (float(X.min()), float(X.max()))
    out = Runner(exported).run({"x": X})["y"]
    np.testing.assert_allclose(out / y.scale, np.rint(out / y.scale), atol=1e-3)


def test_golden_vectors_are_eight_samples_and_replay_bit_for_bit(exported: Artifact) -> None:
    inputs, outputs = exported.golden()
    assert len({x.tobytes() for x in inputs["x"]} & {x.tobytes() for x in X}) == len(inputs["x"]) == 8
    assert Runner(exported).run(inputs)["y"].tobytes() == outputs["y"].tobytes()


# Forms of calibration


class Two(nn.Module):
    """Two inputs, whose order in a mapping is not theirs here."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(8, 3), nn.Linear(5, 3)

    def forward(self, b: Tensor, a: Tensor) -> Tensor:
        out: Tensor = self.left(b) + self.right(a)
        return out


FORMS: dict[str, Callable[[], Any]] = {
    "an array": lambda: X,
    "a tensor": lambda: torch.from_numpy(X),
    "float64": lambda: X.astype(np.float64),
    "a mapping": lambda: {"x": X},
    "batches": lambda: [X[:64], X[64:]],
    "batches of tensors with labels": lambda: [
        (torch.from_numpy(X[:64]), torch.zeros(64, dtype=torch.int64)),
        (torch.from_numpy(X[64:]), torch.zeros(136, dtype=torch.int64)),
    ],
    "batches as lists": lambda: [[X[:50], np.zeros(50)], [X[50:], np.zeros(150)]],
    "a generator": lambda: (X[i : i + 20] for i in range(0, 200, 20)),
    "a generator of pairs": lambda: ((X[i : i + 1], i) for i in range(200)),
    "a data loader": lambda: torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.from_numpy(X), torch.zeros(200)), batch_size=32
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_calibration_gives_the_same_artifact(
    exported: Artifact, model: Path, tmp_path: Path, form: str
) -> None:
    again = export(model, target=TARGET, calibration=FORMS[form](), out=tmp_path / "mlp.ew")
    assert again.digest == exported.digest


@pytest.mark.parametrize("form", ["tuple", "mapping"])
def test_batches_of_several_inputs_calibrate_by_order_or_by_name(tmp_path: Path, form: str) -> None:
    a, b = normal(60, 5, seed=1), normal(60, 8, seed=2)
    labels = np.zeros(60, np.int64)
    batches = [((b, a) if form == "tuple" else {"a": a, "b": b}, labels)]
    model = seeded(Two)
    artifact = export(model, target=TARGET, calibration=batches, out=tmp_path / "two.ew")
    again = export(model, target=TARGET, calibration={"a": a, "b": b}, out=tmp_path / "again" / "two.ew")
    assert artifact.digest == again.digest


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make()


def test_modules_take_their_example_from_any_form_and_give_the_same_bytes(tmp_path: Path) -> None:
    a, b = normal(100, 5, seed=1), normal(100, 8, seed=2)
    net = seeded(Two)
    forms: list[Callable[[], Any]] = [
        lambda: {"a": a, "b": b},
        lambda: iter([(b[:40], a[:40], np.zeros(40)), (b[40:], a[40:], np.zeros(60))]),
    ]
    made = [
        export(net, target=TARGET, calibration=f(), out=tmp_path / str(i) / "m.ew")
        for i, f in enumerate(forms)
    ]
    assert made[0].digest == made[1].digest
    assert [p.name for p in made[0].inputs] == ["b", "a"]
    (want,) = float_function(net)([b, a])
    assert sqnr_db(want, Runner(made[0]).run({"a": a, "b": b})["y"]) > 25


def test_a_batch_of_one_is_example_enough(tmp_path: Path) -> None:
    net = seeded(lambda: nn.Linear(8, 3))
    made = export(net, (X[:1],), target=TARGET, calibration=X[:1], out=tmp_path / "one.ew")
    assert made.golden()[0]["input"].shape == (1, 8)
    assert Runner(made).run({"input": X[:5]})["y"].shape == (5, 3)


@pytest.mark.parametrize("empty", [[], X[:0], {"x": X[:0]}, iter(()), {}])
def test_no_samples_are_refused(model: Path, tmp_path: Path, empty: Any) -> None:
    with pytest.raises(ExportError, match="no calibration data: give at least one sample"):
        export(model, target=TARGET, calibration=empty, out=tmp_path / "a.ew")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"z": X}, r"for inputs \['z'\]; the model takes \['x'\]"),
        (X[:, :7], r"'x' has shape \(200, 7\); \(samples, 8\) is needed"),
        (X[0], r"'x' has shape \(8,\); \(samples, 8\) is needed"),
        ([X[:2], X[:2, :3]], "batches for 'x' do not fit together"),
        (np.array(["a", "b"]), "must be arrays of numbers"),
        ([1.0, 2.0], r"must begin with the inputs \['x'\]"),
        (np.float32(1), r"'x' has shape \(1,\)"),
        (np.full((4, 8), np.nan), "value 'x' is NaN or infinite"),
        (np.full((4, 8), 1e300), "value 'x' is NaN or infinite"),
    ],
)
def test_samples_that_do_not_fit_are_named(model: Path, tmp_path: Path, wrong: Any, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        export(model, target=TARGET, calibration=wrong, out=tmp_path / "a.ew")
    assert not (tmp_path / "a.ew").exists()


def test_inputs_with_different_numbers_of_samples_are_refused(tmp_path: Path) -> None:
    two = graph(
        [("Gemm", ["a", "w"], "h", {"transB": 1}), ("Add", ["h", "b"], "y", {})],
        {"a": (4,), "b": (3,)},
        {"y": (3,)},
        {"w": normal(3, 4)},
    )
    path = saved(two, tmp_path / "two.onnx")
    with pytest.raises(
        ExportError, match=r"differ in their number of calibration samples: \{'a': 5, 'b': 6\}"
    ):
        export(path, target=TARGET, calibration={"a": normal(5, 4), "b": normal(6, 3)}, out=tmp_path / "a.ew")
    with pytest.raises(ExportError, match=r"must begin with the inputs \['a', 'b'\]"):
        export(path, target=TARGET, calibration=[normal(5, 4)], out=tmp_path / "a.ew")


def test_more_than_1024_samples_are_not_read(model: Path, tmp_path: Path) -> None:
    read: list[int] = []

    def endless() -> Iterator[Any]:
        while True:
            read.append(1)
            yield X[:100]

    export(model, target=TARGET, calibration=endless(), out=tmp_path / "a.ew")
    assert len(read) <= 1024


def test_settings_of_the_quantizer_are_heard(exported: Artifact, model: Path, tmp_path: Path) -> None:
    clipped = export(
        model,
        target=TARGET,
        calibration=X,
        out=tmp_path / "mlp.ew",
        quantize=Quantize(calibration="percentile", percentile=90),
    )
    assert clipped.inputs[0].scale < 0.8 * exported.inputs[0].scale


# What cannot be exported


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(10, 4), nn.Linear(4, 2)

    def forward(self, words: Tensor) -> Tensor:
        out: Tensor = self.head(self.table(words).mean(1))
        return out


def test_row_numbers_are_int64_all_the_way(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Words().eval()
    words = rng(0).integers(0, 10, (200, 3))
    made = export(net, target=TARGET, calibration=words, out=tmp_path / "a.ew")
    assert [(p.dtype, p.shape) for p in made.inputs] == [("int64", (None, 3))]
    assert made.golden()[0]["words"].dtype == np.int64
    outputs = [Runner(made, b).run({"words": words})[made.outputs[0].name] for b in ("native", "reference")]
    assert outputs[0].tobytes() == outputs[1].tobytes()
    assert sqnr_db(float_function(net)([words])[0], outputs[0]) > 25
    found = verify(made, reference=net, data=words, cases=200)
    assert found.passed, found.checks
    with pytest.raises(ValueError, match="holds the index 10; 0 to 9 are allowed"):
        Runner(made).run({"words": words + 1})
    with pytest.raises(ValueError, match="dtype float64, int64 is needed"):
        Runner(made).run({"words": words.astype(float)})


def test_whole_numbers_are_needed_for_rows(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="whole numbers are needed"):
        export(
            Words(), torch.zeros(2, 3, dtype=torch.int64), target=TARGET, calibration=X, out=tmp_path / "a"
        )


def test_a_fixed_batch_is_refused_with_the_remedy(tmp_path: Path) -> None:
    fixed = graph(
        [("Gemm", ["x", "w"], "y", {"transB": 1})], {"x": (8,)}, {"y": (3,)}, {"w": normal(3, 8)}, batch=1
    )
    with pytest.raises(
        ExportError, match=r"'x' has shape \(1, 8\); the first dimension must be a free batch"
    ):
        export(saved(fixed, tmp_path / "m.onnx"), target=TARGET, calibration=X, out=tmp_path / "a.ew")


def running_sums_inside(tmp_path: Path) -> Path:
    return saved(
        graph(
            [
                ("Gemm", ["x", "w"], "h", {"transB": 1}),
                ("CumSum", ["h", "axis"], "s", {}),
                ("Gemm", ["s", "v"], "y", {"transB": 1}),
            ],
            {"x": (8,)},
            {"y": (4,)},
            {"w": normal(6, 8, scale=0.3), "v": normal(4, 6), "axis": np.int64(1)},
        ),
        tmp_path / "sums.onnx",
    )


def test_an_operator_the_engine_lacks_is_named_and_onnxruntime_runs_it(tmp_path: Path) -> None:
    path = running_sums_inside(tmp_path)
    with pytest.raises(ExportError, match=r"operator CumSum \(node 'cumsum_s'\).*backend='onnxruntime'"):
        export(path, target=TARGET, calibration=X, out=tmp_path / "a.ew", fallback=False)
    assert not (tmp_path / "a.ew").exists()
    made = export(path, target=TARGET, calibration=X, out=tmp_path / "a.ew", backend="onnxruntime")
    assert "plan.bin" not in made.files
    got = Runner(made, "onnxruntime").run({"x": X})["y"]
    assert sqnr_db(float_function(path)([X])[0], got) > 20
    np.testing.assert_allclose(got[:8], made.golden()[1]["y"], atol=2 * made.outputs[0].scale)
    with pytest.raises(RunnerError, match="use backend 'onnxruntime'"):
        Runner(made)


def test_a_target_without_the_backend_is_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "board.toml").write_text(
        'name = "board"\ntitle = "A board"\narch = "aarch64"\ninstruction_sets = []\nmemory_bytes = 1000000\n'
        'backends = ["onnxruntime"]\nstrategy = "ONNX"\nstatus = "documented"\n'
    )
    board = Target.load(tmp_path / "board.toml")
    with pytest.raises(ExportError, match="target 'board' has no backend 'native'"):
        export(model, target=board, calibration=X, out=tmp_path / "a.ew")
    made = export(model, target=board, calibration=X, out=tmp_path / "a.ew", backend="onnxruntime")
    assert made.targets == ("board",)


def test_a_target_that_is_not_known_suggests_the_nearest(model: Path, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="did you mean 'x86-avx2'"):
        export(model, target="x86-avx3", calibration=X, out=tmp_path / "a.ew")


def test_a_model_beyond_the_targets_memory_is_refused_with_both_sizes(model: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(
        'name = "tiny"\ntitle = "T"\narch = "x86_64"\ninstruction_sets = []\nmemory_bytes = 500\n'
        'backends = ["native"]\nstrategy = "S"\nstatus = "documented"\n'
    )
    with pytest.raises(ExportError, match=r"needs \d+ bytes .*, target 'tiny' has 500; compress it further"):
        export(model, target=str(tmp_path / "tiny.toml"), calibration=X, out=tmp_path / "a.ew")


# The directory


@pytest.mark.parametrize("name", ["my model.ew", ".ew", "naïve.ew", "x" * 65 + ".ew"])
def test_a_name_that_no_artifact_has_is_refused_before_any_work(tmp_path: Path, name: str) -> None:
    with pytest.raises(ExportError, match="artifact name"):
        export(tmp_path / "is never read.onnx", target=TARGET, calibration=X, out=tmp_path / name)


def test_what_is_not_an_artifact_is_left_alone_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "manifest.json").write_text("{}")
    (tmp_path / "thesis" / "chapter1.tex").write_text("mine")
    with pytest.raises(ArtifactError, match="exists and is not an artifact"):
        export(tmp_path / "is never read.onnx", target=TARGET, calibration=X, out=tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter1.tex").read_text() == "mine"


def test_missing_folders_are_made_and_an_artifact_there_is_replaced(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "some" / "where" / "m.ew"
    old = export(model, target=TARGET, calibration=X[:50], out=out)
    new = export(model, target=TARGET, calibration=X, out=out)
    assert Artifact.open(out).digest == new.digest != old.digest
    assert [p.name for p in out.parent.iterdir()] == ["m.ew"]


@pytest.mark.parametrize("step", ["trace", "calibrate", "quantize", "disk"])
def test_an_export_that_is_stopped_leaves_the_old_artifact(
    exported: Artifact, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    old = export(model, target=TARGET, calibration=X[:50], out=tmp_path / "m.ew")

    def stop(progress: Progress) -> None:
        if progress.step == step:
            raise KeyboardInterrupt

    def full(file: Path, data: bytes) -> None:
        raise KeyboardInterrupt

    if step == "disk":
        monkeypatch.setattr(artifact, "_write", full)
    with pytest.raises(KeyboardInterrupt):
        export(model, target=TARGET, calibration=X, out=tmp_path / "m.ew", progress=stop)
    monkeypatch.undo()
    assert Artifact.open(tmp_path / "m.ew") == old
    assert [p.name for p in tmp_path.iterdir()] == ["m.ew"]


# What is in it


def test_weights_are_stored_once_and_model_onnx_points_at_them(tmp_path: Path) -> None:
    wide = saved(mlp(features=64, hidden=128, classes=10), tmp_path / "wide.onnx")
    made = export(wide, target=TARGET, calibration=normal(50, 64), out=tmp_path / "wide.ew")
    onnx.checker.check_model(str(made.path / "model.onnx"), full_check=True)
    tensors = safetensors.numpy.load(made.read("weights.safetensors"))
    model = onnx.load(str(made.path / "model.onnx"), load_external_data=False)
    external = {i.name: i for i in model.graph.initializer if i.data_location == onnx.TensorProto.EXTERNAL}
    assert set(external) == set(tensors)
    assert {e.value for i in external.values() for e in i.external_data if e.key == "location"} == {
        "weights.safetensors"
    }
    inline = [i for i in model.graph.initializer if i.name not in external]
    assert all(len(i.SerializeToString()) < 1024 for i in inline)
    loaded = onnx.load(str(made.path / "model.onnx"))
    for initializer in loaded.graph.initializer:
        if initializer.name in tensors:
            array = onnx.numpy_helper.to_array(initializer)
            assert array.dtype == tensors[initializer.name].dtype
            np.testing.assert_array_equal(array, tensors[initializer.name])
    onnxruntime.InferenceSession(str(made.path / "model.onnx"), providers=["CPUExecutionProvider"])
    raw = tensors["w1"].tobytes()
    assert sum((made.path / n).read_bytes().count(raw) for n in made.files) == 1


def test_nothing_of_the_machine_is_in_an_artifact(tmp_path: Path) -> None:
    made = export(seeded(lambda: nn.Linear(8, 3)), target=TARGET, calibration=X, out=tmp_path / "m.ew")
    data = b"".join(made.read(name) for name in made.files)
    assert str(Path(__file__).parents[2]).encode() not in data
    assert str(tmp_path).encode() not in data
    assert b"site-packages" not in data


def test_golden_vectors_of_large_inputs_stay_within_what_a_device_reads(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(golden, "GOLDEN_BYTES", 3 * 8 * 4 + 1)
    made = export(model, target=TARGET, calibration=X, out=tmp_path / "m.ew")
    assert len(made.golden()[0]["x"]) == 3
    monkeypatch.setattr(golden, "GOLDEN_BYTES", 0)
    made = export(model, target=TARGET, calibration=X, out=tmp_path / "m.ew")
    assert len(made.golden()[0]["x"]) == 1


def test_an_update_on_a_base_changes_fewer_bytes(model: Path, tmp_path: Path) -> None:
    base = export(model, target=TARGET, calibration=X, out=tmp_path / "m.ew")
    moved = onnx.load(str(model))
    w1 = onnx.numpy_helper.to_array(moved.graph.initializer[0])
    changed = (w1 * (1 + 0.003 * np.random.default_rng(0).standard_normal(w1.shape))).astype(np.float32)
    moved.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(changed, "w1"))
    path = saved(moved, tmp_path / "moved.onnx")

    def differing(made: Artifact) -> int:
        old, new = (np.frombuffer(a.read("weights.safetensors"), np.uint8) for a in (base, made))
        return int(np.count_nonzero(old != new))

    kept: list[float] = []
    on_base = export(
        path,
        target=TARGET,
        calibration=X * np.float32(0.99),
        out=tmp_path / "kept" / "m.ew",
        base=base,
        progress=lambda p: kept.extend(v for k, v in p.metrics.items() if k == "kept_grids"),
    )
    alone = export(path, target=TARGET, calibration=X * np.float32(0.99), out=tmp_path / "alone" / "m.ew")
    assert kept == [3 + 16 + 4]
    assert differing(on_base) < 0.2 * differing(alone)
    assert on_base.inputs[0].scale == base.inputs[0].scale


def test_progress_tells_every_step_in_order(model: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []
    export(model, target=TARGET, calibration=X, out=tmp_path / "m.ew", progress=seen.append)
    assert list(dict.fromkeys(p.step for p in seen)) == ["trace", "calibrate", "quantize", "write"]
    assert all(0 <= p.done <= p.total for p in seen)
    assert seen[-1].done == seen[-1].total


# Float ONNX


def test_optimized_onnx_is_smaller_and_the_same_function(tmp_path: Path) -> None:
    net = seeded(
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)
        )
    ).eval()
    x = normal(2, 1, 8, 8)
    plain = export_onnx(net, tmp_path / "plain.onnx", example_inputs=x)
    small = export_onnx(net, tmp_path / "small.onnx", example_inputs=x, optimize=True)
    assert plain.report is None
    assert small.report is not None
    assert small.report.passed
    assert small.report.sqnr_db > 100
    assert small.nodes <= small.nodes_before == plain.nodes
    assert small.size_bytes == small.path.stat().st_size
    want = float_function(net)([x])[0]
    for made in (plain, small):
        np.testing.assert_allclose(float_function(made.path)([x])[0], want, rtol=1e-4, atol=1e-5)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["plain.onnx", "small.onnx"]


@pytest.mark.parametrize("error", [0.01, float("nan")])
def test_an_optimized_graph_that_differs_is_not_written(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: float
) -> None:
    def wrong(made: onnx.ModelProto) -> onnx.ModelProto:
        changed = onnx.ModelProto()
        changed.CopyFrom(made)
        bias = onnx.numpy_helper.to_array(changed.graph.initializer[-1]) + np.float32(error * 100)
        changed.graph.initializer[-1].CopyFrom(onnx.numpy_helper.from_array(bias, "b2"))
        return changed

    monkeypatch.setattr(float_onnx, "normalize", wrong)
    with pytest.raises(ExportError, match=r"the optimized graph is not equal .*; nothing was written"):
        export_onnx(model, tmp_path / "out.onnx", optimize=True)
    assert not list(tmp_path.iterdir())


def test_a_model_is_never_written_over_itself(model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "m.onnx"
    copy.write_bytes(model.read_bytes())
    (tmp_path / "link.onnx").symlink_to(copy)
    for out in (copy, tmp_path / "link.onnx"):
        with pytest.raises(ExportError, match="is the model itself"):
            export_onnx(copy, out, optimize=True)
    assert copy.read_bytes() == model.read_bytes()


def test_an_exported_float_graph_can_be_exported_again(model: Path, tmp_path: Path) -> None:
    written = export_onnx(model, tmp_path / "again.onnx", optimize=True)
    np.testing.assert_allclose(
        onnx_function(onnx.load(str(written.path)))({"x": X})["y"], float_function(model)([X])[0], atol=1e-5
    )
