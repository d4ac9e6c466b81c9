"""`edgewright` and `ds_export` as a person meets them: what they make, and one clear word why they cannot."""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from rich.console import Console

from edgewright import cli
from edgewright.exporting import export
from edgewright.graph import float_function
from edgewright.hardware import show_all
from edgewright.models import load_model, save_model
from edgewright.verification import verify
from edgewright.verification_report import VerificationReport
from edgewright_device import STATUS_WORDS, Artifact, Runner, Target, detect, target_names
from edgewright_ota import Repository
from sdk.foreign import quantize_static
from sdk.graphs import Node, corners_and_more, graph, mlp, normal, saved

X = corners_and_more(8)
COMMANDS = ("demo", "compress", "distill", "export", "verify", "compare", "bench", "targets", "publish")

CENTRES = ((0.0, 3.0), (3.0, -2.0), (-3.0, -2.0))
NET = f"""
import torch
from rich.console import Console
from torch import nn


def make():
    return nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 3))


def nearest_centre():
    centres = torch.tensor({CENTRES})
    teacher = nn.Linear(2, 3)
    teacher.load_state_dict({{"weight": centres, "bias": -centres.square().sum(1) / 2}})
    return teacher


def leave():
    raise SystemExit(0)


class Untraceable(nn.Linear):
    def __init__(self):
        super().__init__(2, 3)

    def forward(self, x):
        y = super().forward(x)
        return y if float(y.sum()) > 0 else -y
"""
RECIPE = """
name = "points"

[distill]
epochs = 3

[prune]
ratio = 0.5
importance = "magnitude"

[finetune]
epochs = 10
learning_rate = 0.05
"""


@dataclass(frozen=True, kw_only=True)
class Done:
    """Exit code, output and error output of a command."""

    code: int
    out: str
    err: str


Call = Callable[[str], Done]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs a command line in this process."""

    def run(line: str) -> Done:
        program, *arguments = shlex.split(line)
        monkeypatch.setattr(sys, "argv", [program, *arguments])
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.delenv("FORCE_COLOR", raising=False)
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            {"edgewright": cli.main, "ds_export": cli.main_ds_export}[program]()
        out, err = capsys.readouterr()
        return Done(code=int(ended.value.code or 0), out=out, err=err)

    return run


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the tests read and never write to: models, samples, an artifact with its report, damaged files."""
    folder = tmp_path_factory.mktemp("files")
    saved(mlp(), folder / "m.onnx")
    saved(mlp(seed=7), folder / "other.onnx")
    nodes: list[Any] = [("Gemm", ["x", "w"], "h", {"transB": 1}), ("CumSum", ["h", "axis"], "e", {})]
    nodes.append(("Gemm", ["e", "v"], "y", {"transB": 1}))
    constants = {"w": normal(6, 8, scale=0.3), "v": normal(4, 6), "axis": np.int64(1)}
    saved(graph(nodes, {"x": (8,)}, {"y": (4,)}, constants), folder / "sums.onnx")
    for name in ("damaged.onnx", "damaged.pt2", "damaged.npz", "m.txt"):
        (folder / name).write_bytes(b"nonsense")
    np.savez(folder / "x.npz", x=X)
    np.savez(folder / "named.npz", z=X)
    np.savez(folder / "narrow.npz", x=X[:, :7])
    np.savez(folder / "text.npz", x=np.array([["a"] * 8]))
    np.savez(folder / "objects.npz", x=np.array([{}], dtype=object))
    np.save(folder / "alone.npy", X)
    labels = np.arange(120) % 3
    points = (np.array(CENTRES)[labels] + np.random.default_rng(0).normal(size=(120, 2))).astype(np.float32)
    np.savez(folder / "points.npz", x=points, y=labels)
    (folder / "net.py").write_text(NET)
    (folder / "recipe.toml").write_text(RECIPE)
    (folder / "misspelt.toml").write_text('name = "m"\n[quantize]\ncalibraton = "mse"\n')
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = load_model(f"{folder / 'net.py'}:make")
    safetensors.torch.save_model(net, str(folder / "net.safetensors"))
    save_model(net, (points[:2],), folder / "net.pt2")
    artifact = export(folder / "m.onnx", target="x86-64", calibration=X, out=folder / "m.ew")
    report = verify(artifact, reference=folder / "m.onnx", data=X, cases=1500)
    (folder / "report.json").write_text(report.to_json())
    return folder


def contents(*folders: Path) -> dict[Path, bytes | None]:
    """Everything below, hidden files too."""
    return {p: p.read_bytes() if p.is_file() else None for f in folders for p in f.rglob("*")}


def words(boxed: str) -> str:
    """The words of a text in a box, whatever its width and colours."""
    return " ".join(w for w in re.sub(r"\x1b\[[0-9;]*m", "", boxed).split() if w != "│")


# Results


def test_version_and_help_name_the_product_and_every_command(call: Call) -> None:
    assert call("edgewright --version").out == f"edgewright {version('edgewright')}\n"
    shown = call("edgewright --help")
    assert shown.code == 0
    for command in COMMANDS:
        assert f" {command} " in words(shown.out)
        helped = call(f"edgewright {command} --help")
        assert (helped.code, helped.err) == (0, "")
        assert "--json" in words(helped.out)
    assert "its [quantize] part" in words(call("ds_export --help").out)


def test_targets_shows_all_that_are_known_and_this_machine(call: Call) -> None:
    done = call("edgewright targets")
    assert done.code == 0
    assert f"{detect().name} (here)" in done.out
    told = json.loads(call("edgewright targets --json -").out)
    assert told["here"] == detect().name
    assert tuple(t["name"] for t in told["targets"]) == target_names()
    for target in told["targets"]:
        assert target["title"] == Target.load(target["name"]).title


def test_targets_fits_a_terminal_of_100_columns() -> None:
    console = Console(width=100, file=io.StringIO(), soft_wrap=True)
    show_all(console)
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert max(map(len, shown.splitlines())) <= 100
    for text in (*target_names(), *STATUS_WORDS.values()):
        assert all(word in shown for word in text.split())


def test_one_target_is_shown_with_its_sources(call: Call) -> None:
    one = call("edgewright targets qnn-htp")
    assert "fixed, batch 1" in one.out
    assert "QNN-ExecutionProvider.html" in one.out
    told = json.loads(call("edgewright targets qnn-htp --json -").out)["takes"][0]
    assert (told["provider"], told["activations"], told["fixed_shapes"]) == ("QNN", ["uint16", "uint8"], True)
    typo = call("edgewright targets rpi55")
    assert (typo.code, "did you mean 'rpi5'?" in typo.err) == (2, True)


def test_json_on_stdout_leaves_stderr_to_people(call: Call, tmp_path: Path) -> None:
    done = call("edgewright targets --json -")
    json.loads(done.out)
    assert "`edgewright targets NAME` shows one in full" in done.err
    done = call(f"edgewright targets --json {tmp_path}/new/targets.json")
    assert "`edgewright targets NAME` shows one in full" in done.out
    assert done.err == ""
    json.loads((tmp_path / "new" / "targets.json").read_text())


def test_export_writes_beside_the_model_what_it_tells(call: Call, files: Path, tmp_path: Path) -> None:
    shutil.copy(files / "m.onnx", tmp_path)
    done = call(
        f"edgewright export {tmp_path}/m.onnx --calibration {files}/x.npz --json {tmp_path}/told.json"
    )
    assert (done.code, done.err) == (0, "")
    made = Artifact.open(tmp_path / "m.ew")
    assert made.targets == (detect().name,)
    assert json.loads((tmp_path / "told.json").read_text()) == {
        "artifact": str(tmp_path / "m.ew"),
        "digest": made.digest,
        "targets": [detect().name],
        "size_bytes": made.size_bytes,
        "files": {name: file.size_bytes for name, file in made.files.items()},
        "notes": [],
        "parts": [],
        "lengths": None,
    }
    for name, file in made.files.items():
        assert f"│ {name} " in done.out
        assert f" {file.size_bytes:,} " in done.out
    assert {p.name for p in tmp_path.iterdir()} == {"m.onnx", "m.ew", "told.json"}


def test_sensitivity_shows_every_layer_and_what_labels_lose(call: Call, files: Path, tmp_path: Path) -> None:
    found = call(
        f"edgewright sensitivity {files}/m.onnx --calibration {files}/x.npz --json {tmp_path}/told.json"
    )
    assert (found.code, found.err) == (0, "")
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["accuracy"] is None
    assert len(told["layers"]) >= 3
    for row in told["layers"]:
        assert f"│ {row['layer']} " in found.out
    with np.load(files / "x.npz") as archive:
        x = archive["x"][:40]
    np.savez(tmp_path / "labelled.npz", x=x, y=np.zeros(40, np.int64))
    done = call(
        f"edgewright sensitivity {files}/m.onnx --calibration {files}/x.npz --data {tmp_path}/labelled.npz"
    )
    assert done.code == 0
    assert "accuracy lost, points" in done.out
    assert "measured on 40 samples" in done.out


def test_export_tells_what_falls_back_unless_it_may_not(call: Call, tmp_path: Path) -> None:
    nodes: list[Node] = [("Gemm", ["x", "w"], "h", {"transB": 1}), ("CumSum", ["h", "axis"], "y", {})]
    made = graph(nodes, {"x": (6,)}, {"y": (4,)}, {"w": normal(4, 6), "axis": np.int64(1)})
    saved(made, tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=normal(50, 6))
    command = f"edgewright export {tmp_path}/m.onnx --calibration {tmp_path}/x.npz --target x86-64"
    refused = call(f"{command} --no-fallback")
    assert refused.code == 2
    assert "operator CumSum (node 'cumsum_y')" in refused.err
    done = call(f"{command} --json {tmp_path}/told.json")
    note = "ONNX Runtime runs CumSum (node 'cumsum_y'): the native engine has no such operator"
    assert note in done.out
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["notes"] == [note]
    assert [p["file"] for p in told["parts"]] == ["part-0.bin", "part-1.onnx"]
    bench = call(f"edgewright bench {tmp_path}/m.ew --rounds 2 --json -")
    assert json.loads(bench.out).keys() >= {"native", "onnxruntime"}
    profiled = call(f"edgewright bench {tmp_path}/m.ew --rounds 2 --profile")
    assert "onnxruntime" in profiled.out
    assert "CumSum" in profiled.out


def test_only_a_quantized_file_exports_without_samples(call: Call, files: Path, tmp_path: Path) -> None:
    done = call(f"ds_export {files}/m.onnx --out {tmp_path}/m.ew")
    assert (done.code, done.out) == (2, "")
    assert "no calibration data: give at least one sample" in done.err
    quantize_static(files / "m.onnx", tmp_path / "q.onnx", X, "S8S8")
    done = call(f"ds_export {tmp_path}/q.onnx --out {tmp_path}/m.ew --json {tmp_path}/told.json")
    assert done.code == 0
    note = (
        "quantized already, integers kept; quantized now, since the file leaves them in floating point: "
        "0 values, 0 layers; weights outside -127..127, so that inputs are read twice: 0 layers"
    )
    assert json.loads((tmp_path / "told.json").read_text())["notes"] == [note]
    checked = call(f"edgewright verify {tmp_path}/m.ew --reference {tmp_path}/q.onnx --data {files}/x.npz")
    assert checked.code == 0


def test_export_makes_a_program_for_each_length(call: Call, tmp_path: Path) -> None:
    nodes: list[Node] = [("Conv", ["x", "w"], "y", {"pads": [1, 1]})]
    made = graph(nodes, {"x": (3, 12)}, {"y": (4, 12)}, {"w": normal(4, 3, 3)})
    for value in (*made.graph.input, *made.graph.output):
        value.type.tensor_type.shape.dim[2].dim_param = "L"
    saved(made, tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=normal(50, 3, 12))
    command = f"edgewright export {tmp_path}/m.onnx --calibration {tmp_path}/x.npz --target x86-64"
    done = call(f"{command} --lengths 8,12 --json {tmp_path}/told.json")
    assert "only the lengths 8, 12 are taken: no input is a mask" in done.out
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["lengths"] == {"sizes": [8, 12], "mask": None}
    assert "plan-8.bin" in told["files"]
    refused = call(f"{command} --lengths 8,twelve")
    assert refused.code == 2
    assert "give numbers such as 32,64,128" in refused.err


def test_export_hears_target_recipe_and_base(call: Call, files: Path, tmp_path: Path) -> None:
    (tmp_path / "clipped.toml").write_text(
        'name = "m"\n[quantize]\ncalibration = "percentile"\npercentile = 90\n'
    )
    common = f"edgewright export {files}/other.onnx --calibration {files}/x.npz --target x86-64"
    for name, options in (
        ("plain", ""),
        ("recipe", f"--recipe {tmp_path}/clipped.toml"),
        ("base", f"--base {files}/m.ew"),
    ):
        assert call(f"{common} --out {tmp_path}/{name}/m.ew {options}").code == 0
    made = {name: Artifact.open(tmp_path / name / "m.ew") for name in ("plain", "recipe", "base")}
    assert len({a.digest for a in made.values()}) == 3
    assert all(a.targets == ("x86-64",) for a in made.values())
    assert made["base"].inputs[0].scale == Artifact.open(files / "m.ew").inputs[0].scale


def test_an_operator_the_engine_lacks_goes_to_the_backend_that_has_it(
    call: Call, files: Path, tmp_path: Path
) -> None:
    common = f"edgewright export {files}/sums.onnx --calibration {files}/x.npz --out {tmp_path}/m.ew"
    refused = call(f"{common} --no-fallback")
    assert refused.code == 2
    assert "operator CumSum (node 'cumsum_e')" in refused.err
    assert "onnxruntime" in refused.err
    assert not list(tmp_path.iterdir())
    assert call(f"{common} --backend onnxruntime").code == 0
    assert Runner(Artifact.open(tmp_path / "m.ew"), "onnxruntime").run({"x": X})["y"].shape == (len(X), 4)


def test_an_onnx_file_is_optimized_beside_itself(call: Call, files: Path, tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes((files / "m.onnx").read_bytes())
    assert call(f"ds_export --format onnx --optimize {model}").code == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "m.optimized.onnx"]


def test_float_onnx_is_the_same_function_by_both_commands(call: Call, files: Path, tmp_path: Path) -> None:
    done = call(
        f"edgewright export {files}/net.pt2 --format onnx --optimize --out {tmp_path}/a.onnx "
        f"--json {tmp_path}/told.json"
    )
    assert (done.code, done.err) == (0, "")
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["path"] == str(tmp_path / "a.onnx")
    assert f"{told['nodes']} nodes, {told['size_bytes']:,} bytes" in done.out
    assert float(told["report"]["sqnr_db"]) > 100
    assert call(f"ds_export {files}/net.pt2 --format onnx --optimize --out {tmp_path}/b.onnx").code == 0
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    x = np.load(files / "points.npz")["x"]
    want = float_function(files / "net.pt2")([x])[0]
    np.testing.assert_allclose(float_function(tmp_path / "a.onnx")([x])[0], want, rtol=1e-4, atol=1e-5)


def test_a_healthy_artifact_passes_and_its_report_is_for_publish(
    call: Call, files: Path, tmp_path: Path
) -> None:
    common = f"edgewright verify {files}/m.ew --reference {files}/m.onnx --data {files}/x.npz --cases 1500"
    done = call(f"{common} --report {tmp_path}/new/report.json --json {tmp_path}/told.json")
    assert (done.code, done.err) == (0, "")
    assert "failed" not in done.out
    text = (tmp_path / "new" / "report.json").read_text()
    assert VerificationReport.from_json(text).artifact == Artifact.open(files / "m.ew").digest
    assert json.loads(text) == json.loads((tmp_path / "told.json").read_text())
    assert text == (files / "report.json").read_text()
    again = json.loads(call(f"{common} --seed 1 --json -").out)
    assert again["seed"] == 1
    assert again["sqnr_db"] != json.loads(text)["sqnr_db"]


def test_bench_times_every_backend_and_the_float_model(call: Call, files: Path, tmp_path: Path) -> None:
    done = call(
        f"edgewright bench {files}/m.ew --reference {files}/m.onnx --rounds 5 --batch 3 --threads 2 "
        f"--json {tmp_path}/told.json"
    )
    assert (done.code, done.err) == (0, "")
    told = json.loads((tmp_path / "told.json").read_text())
    assert list(told) == ["native", "onnxruntime", "onnxruntime, fastest", "onnx"]
    for row in told.values():
        assert 0 < row["min_ms"] <= row["median_ms"]
        assert row["rounds"] == 5
    assert done.out.count(" 1.00 ") >= 1
    assert "batch 3, 2 threads" in done.out


def test_bench_says_how_exact_each_engine_is(call: Call, files: Path, tmp_path: Path) -> None:
    shutil.copytree(files / "m.ew", tmp_path / "m.ew")
    bench = f"edgewright bench {tmp_path}/m.ew --rounds 1 --json -"
    told = json.loads(call(f"{bench} --reference {files}/m.onnx").out)
    assert told["native"]["steps_off"] == 0
    assert told["onnxruntime"]["steps_off"] <= 1.01  # its own rounding rule
    assert 0 < told["onnx"]["steps_off"] < 20  # what quantization costs
    qdq = json.loads(call(f"{bench} --reference {tmp_path}/m.ew/model.onnx").out)
    assert qdq["onnx"]["steps_off"] == qdq["onnxruntime, fastest"]["steps_off"]
    wide = graph([("Gemm", ["x", "w"], "y", {"transB": 1})], {"x": (8,)}, {"y": (5,)}, {"w": normal(5, 8)})
    other = json.loads(call(f"{bench} --reference {saved(wide, tmp_path / 'wide.onnx')}").out)
    assert other["onnx"]["steps_off"] is None


def test_bench_leaves_out_an_engine_that_is_not_here(
    call: Call, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    done = call(f"edgewright bench {files}/m.ew --rounds 1")
    assert done.code == 0
    assert "left out: backend 'onnxruntime' is not installed here" in done.out
    assert "native" in done.out


def test_compress_makes_a_program_that_exports_and_verifies(call: Call, files: Path, tmp_path: Path) -> None:
    done = call(
        f"edgewright compress {files}/net.py:make --weights {files}/net.safetensors --json - "
        f"--data {files}/points.npz --teacher {files}/net.py:nearest_centre --recipe {files}/recipe.toml "
        f"--out {tmp_path}/new/small.pt2"
    )
    assert done.code == 0
    told = json.loads(done.out)
    assert told["model"] == str(tmp_path / "new" / "small.pt2")
    assert (told["before"]["parameters"], told["after"]["parameters"]) == (99, 51)
    assert told["before"]["accuracy"] < 0.9 <= told["after"]["accuracy"]
    assert f"{100 * told['after']['accuracy']:.2f} %" in done.err
    call(f"edgewright export {told['model']} --calibration {files}/points.npz")
    checked = call(
        f"edgewright verify {tmp_path}/new/small.ew --reference {told['model']} --data {files}/points.npz "
        "--cases 1500 --json -"
    )
    assert (checked.code, json.loads(checked.out)["passed"]) == (0, True)


def test_compress_with_qat_writes_the_integers_that_export_takes(
    call: Call, files: Path, tmp_path: Path
) -> None:
    (tmp_path / "qat.toml").write_text(
        'name = "points"\n[qat]\nepochs = 1\n[quantize]\nactivations = "int16"\n'
    )
    compress = (
        f"edgewright compress {files}/net.py:nearest_centre --data {files}/points.npz --json - "
        f"--recipe {tmp_path}/qat.toml --out {tmp_path}"
    )
    told = json.loads(call(f"{compress}/small.onnx").out)
    assert told["after"]["accuracy"] >= told["before"]["accuracy"] - 0.02
    assert call(f"edgewright export {tmp_path}/small.onnx").code == 0
    checked = call(f"edgewright verify {tmp_path}/small.ew --reference {tmp_path}/small.onnx --json -")
    assert (checked.code, json.loads(checked.out)["passed"]) == (0, True)
    refused = call(f"{compress}/small.pt2")
    assert refused.code == 2
    assert "the compressed model is a QDQ graph, named NAME.onnx, or an artifact" in refused.err
    assert call(f"{compress}/direct.ew").code == 0
    assert (tmp_path / "direct.ew" / "weights.safetensors").read_bytes() == (
        tmp_path / "small.ew" / "weights.safetensors"
    ).read_bytes()


def test_distill_teaches_a_student(call: Call, files: Path, tmp_path: Path) -> None:
    taught = call(
        f"edgewright distill {files}/net.py:make --weights {files}/net.safetensors --json - "
        f"--data {files}/points.npz --teacher {files}/net.py:nearest_centre --out {tmp_path}/s.pt2 "
        "--epochs 15 --learning-rate 0.05 --temperature 2 --alpha 0.9 --seed 3"
    )
    assert taught.code == 0
    told = json.loads(taught.out)
    assert told["before"]["parameters"] == told["after"]["parameters"] == 99
    assert told["before"]["accuracy"] < 0.9 <= told["after"]["accuracy"]
    assert float_function(tmp_path / "s.pt2")([np.zeros((4, 2), np.float32)])[0].shape == (4, 3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.lock", "s.pt2"]


def test_what_was_verified_is_published_once_and_with_a_delta_the_next_time(
    call: Call, files: Path, tmp_path: Path
) -> None:
    shutil.copytree(files / "m.ew", tmp_path / "m.ew")
    common = f"edgewright publish {tmp_path}/m.ew --report {files}/report.json --repository {tmp_path}/repo"
    done = call(f"{common} --version 1.0.0 --rollback-index 2 --json {tmp_path}/told.json")
    assert (done.code, done.err) == (0, "")
    assert "m 1.0.0" in done.out
    assert "full.ewpk" in done.out
    told = json.loads((tmp_path / "told.json").read_text())
    assert (told["name"], told["version"], len(told["packages"])) == ("m", "1.0.0", 1)
    (release,) = Repository.open(tmp_path / "repo").releases("m")
    assert release.rollback_index == 2
    before = contents(tmp_path)
    again = call(f"{common} --version 1.0.0")
    assert (again.code, again.out) == (2, "")
    assert again.err == "error: m 1.0.0: was published before; give a new version\n"
    assert contents(tmp_path) == before
    told = json.loads(call(f"{common} --version 1.0.1 --json -").out)
    assert [p["base"] for p in told["packages"]] == [None, "1.0.0"]


def test_bench_shows_where_the_time_goes(call: Call, files: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    done = call(
        f"edgewright bench {files / 'm.ew'} --profile --rounds 3 --trace {trace} --json {tmp_path / 'p.json'}"
    )
    assert (done.code, done.err) == (0, "")
    assert "FullyConnected" in done.out
    operators = json.loads((tmp_path / "p.json").read_text())["operators"]
    assert [o["operator"] for o in operators] == [
        "Quantize",
        "FullyConnected",
        "FullyConnected",
        "Dequantize",
    ]
    assert [e["dur"] for e in json.loads(trace.read_text())["traceEvents"]] == [
        o["microseconds"] for o in operators
    ]


# What did not hold: exit code 1


def test_a_wrong_model_fails_and_its_report_cannot_be_published(
    call: Call, files: Path, tmp_path: Path
) -> None:
    failed = call(
        f"edgewright verify {files}/m.ew --reference {files}/other.onnx --data {files}/x.npz --cases 100 "
        f"--report {tmp_path}/report.json"
    )
    assert (failed.code, failed.err) == (1, "")
    assert "failed" in failed.out
    assert json.loads((tmp_path / "report.json").read_text())["passed"] is False
    before = contents(tmp_path, files)
    done = call(
        f"edgewright publish {files}/m.ew --report {tmp_path}/report.json --repository {tmp_path}/repo "
        "--version 1.0.0"
    )
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(f"not published: {files}/m.ew: verification did not pass (weights: failed")
    assert len(done.err.splitlines()) == 1
    assert contents(tmp_path, files) == before


def test_a_report_about_another_artifact_is_not_taken(call: Call, files: Path, tmp_path: Path) -> None:
    export(files / "m.onnx", target="x86-64", calibration=X[:50], out=tmp_path / "m.ew")
    done = call(
        f"edgewright publish {tmp_path}/m.ew --report {files}/report.json --repository {tmp_path}/repo "
        "--version 1.0.0"
    )
    assert (done.code, done.out) == (1, "")
    assert "run `edgewright verify` on this artifact" in done.err
    assert [p.name for p in tmp_path.iterdir()] == ["m.ew"]


# Bad use: exit code 2

MISSPELT = "{f}/misspelt.toml, [quantize]: unknown key 'calibraton'; did you mean 'calibration'?"
# What is right about each command line; of an option given twice, the last counts.
RIGHT = {
    "export": "--calibration {f}/x.npz --out {t}/a.ew",
    "compress": "--data {f}/points.npz --recipe {f}/recipe.toml --out {t}/a.pt2",
    "distill": "{f}/net.py:make --teacher {f}/net.py:nearest_centre --data {f}/points.npz --out {t}/a.pt2",
    "verify": "{f}/m.ew --reference {f}/m.onnx --data {f}/x.npz",
    "bench": "{f}/m.ew",
    "publish": "{f}/m.ew --report {f}/report.json --repository {t}/repo --version 1.0.0",
    "targets": "",
}


@pytest.mark.parametrize(
    ("command", "wrong", "message"),
    [
        ("export", "{f}/none.onnx", "{f}/none.onnx: there is no such file"),
        ("export", "{f}/damaged.onnx", "{f}/damaged.onnx: not an ONNX file, or damaged"),
        ("export", "{f}/damaged.pt2", "{f}/damaged.pt2: not a torch.export program, or damaged"),
        ("export", "{f}/m.txt", "{f}/m.txt: not a model; give a .pt2 or .onnx file"),
        ("export", "{f}/m.onnx --calibration {f}/none.npz", "{f}/none.npz: there is no such file"),
        ("export", "{f}/m.onnx --calibration {f}/damaged.npz", "{f}/damaged.npz: not an .npz"),
        ("export", "{f}/m.onnx --calibration {f}/objects.npz", "{f}/objects.npz: not an .npz"),
        ("export", "{f}/m.onnx --calibration {f}/alone.npy", "alone.npy: one array alone; save it with"),
        ("export", "{f}/m.onnx --calibration {f}/narrow.npz", "'x' has shape (456, 7); (samples, 8)"),
        ("export", "{f}/m.onnx --calibration {f}/text.npz", "must be arrays of numbers"),
        ("export", "{f}/m.onnx --calibration {f}/named.npz", "inputs ['z']; the model takes ['x']"),
        ("export", "{f}/m.onnx --target x86-avx3", "not known; did you mean 'x86-avx2'?"),
        ("export", "{f}/m.onnx --target {t}/none.toml", "{t}/none.toml: cannot be read"),
        ("export", "{f}/m.onnx --recipe {f}/none.toml", "{f}/none.toml: cannot read this recipe"),
        ("export", "{f}/m.onnx --recipe {f}/misspelt.toml", MISSPELT),
        ("export", "{f}/m.onnx --out {t}/thesis", "{t}/thesis: exists and is not an artifact"),
        ("export", "{f}/m.onnx --out '{t}/my model.ew'", "artifact name 'my model'"),
        (
            "export",
            "{f}/m.onnx --format onnx --optimize --out {f}/m.onnx",
            "is the model itself, which would be lost",
        ),
        ("export", "{f}/m.onnx --format onnx --optimize --out {t}/thesis", "Is a directory"),
        ("compress", "{f}/none.py:make", "{f}/none.py: there is no such file"),
        ("compress", "{f}/net.py:build", "{f}/net.py:build: {f}/net.py has no 'build'"),
        ("compress", "{f}/net.py:leave", "{f}/net.py:leave: calling 'leave' failed (SystemExit: 0)"),
        ("compress", "{f}/damaged.pt2", "{f}/damaged.pt2: cannot be read as a .pt2 program"),
        ("compress", "{f}/net.py:Untraceable", "torch cannot trace this model"),
        ("compress", "{f}/net.py:make", "recipe 'points' distils, which needs a teacher"),
        ("compress", "{f}/net.py:make --weights {f}/none", "{f}/none: there is no such file"),
        ("compress", "{f}/net.py:make --weights {f}/m.txt", "{f}/m.txt: does not fit the model"),
        ("compress", "{f}/net.py:make --recipe {f}/misspelt.toml", MISSPELT),
        ("compress", "{f}/net.py:make --data {f}/x.npz", "{f}/x.npz: x_train, y_train"),
        ("compress", "edgewright.digits:Student --teacher {f}/net.py:make", "inputs, of shape (64, 2)"),
        ("compress", "{f}/net.py:make --out {t}/a.onnx", "{t}/a.onnx: the compressed model is a torch"),
        ("compress", "{f}/none --out {t}/thesis/1.tex/a.pt2", "1.tex/a.pt2: a file cannot be written there"),
        ("distill", "--data {f}/none.npz --out {t}/folder.pt2", "folder.pt2: a file cannot be written there"),
        ("distill", "--teacher {f}/net.py:no", "{f}/net.py:no: {f}/net.py has no 'no'"),
        ("verify", "--reference {f}/none.onnx", "{f}/none.onnx: there is no such file"),
        ("verify", "--reference {f}/net.pt2", "the reference does not take this model's inputs"),
        ("verify", "--data {f}/none.npz", "{f}/none.npz: there is no such file"),
        ("verify", "--data {f}/narrow.npz", "'x' has shape (456, 7); (samples, 8) is needed"),
        ("verify", "--data {f}/text.npz", "data must be arrays of numbers"),
        ("verify", "--data {f}/none.npz --report {t}/thesis", "{t}/thesis: a file cannot be written there"),
        ("bench", "--reference {f}/m.txt", "{f}/m.txt: ONNX Runtime cannot load it"),
        ("bench", "--reference {f}/none.onnx", "{f}/none.onnx: ONNX Runtime cannot load it"),
        ("bench", "--trace {t}/thesis", "{t}/thesis: a file cannot be written there"),
        ("publish", "--report {f}/none.json", "{f}/none.json: cannot be read"),
        ("publish", "--report {f}/m.txt", "{f}/m.txt: cannot be read (not a verification report"),
        ("targets", "--json {t}/thesis", "Is a directory: '{t}/thesis'"),
    ],
)
def test_what_cannot_be_done_is_one_line_that_says_why_and_nothing_changes(
    call: Call, files: Path, tmp_path: Path, command: str, wrong: str, message: str
) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "1.tex").write_text("mine")
    (tmp_path / "folder.pt2").mkdir()
    (tmp_path / "a.pt2").write_bytes(b"old")
    shutil.copytree(files / "m.ew", tmp_path / "a.ew")
    before = contents(tmp_path, files)
    done = call(f"edgewright {command} {RIGHT[command]} {wrong}".format(f=files, t=tmp_path))
    assert done.code == 2
    assert message.format(f=files, t=tmp_path) in done.err
    assert done.err.startswith("error: ")
    assert len(done.err.splitlines()) == 1
    assert contents(tmp_path, files) == before


def truncate_the_plan(artifact: Path) -> None:
    data = (artifact / "plan.bin").read_bytes()
    (artifact / "plan.bin").write_bytes(data[:-7])


def change_a_byte(artifact: Path) -> None:
    data = bytearray((artifact / "weights.safetensors").read_bytes())
    data[-1] ^= 1
    (artifact / "weights.safetensors").write_bytes(data)


def lose_a_file(artifact: Path) -> None:
    (artifact / "golden.npz").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            shutil.rmtree,
            r"m\.ew: does not exist; an artifact is the directory that `edgewright export` writes",
        ),
        (truncate_the_plan, r"plan\.bin: \d+ bytes, manifest\.json says \d+; it is damaged"),
        (change_a_byte, r"weights\.safetensors: its SHA-256 is not the one in manifest\.json"),
        (lose_a_file, r"golden\.npz: missing; this is no artifact, or an incomplete one"),
    ],
)
@pytest.mark.parametrize(
    "line",
    [
        "verify {t}/m.ew --reference {f}/m.onnx --report {t}/new.json",
        "bench {t}/m.ew",
        "publish {t}/m.ew --report {f}/report.json --repository {t}/repo --version 1.0.0",
        "export {f}/m.onnx --calibration {f}/x.npz --base {t}/m.ew --out {t}/a.ew",
    ],
    ids=lambda line: line.split()[0],
)
def test_a_damaged_artifact_is_refused_by_every_command(
    call: Call, files: Path, tmp_path: Path, line: str, damage: Callable[[Path], None], message: str
) -> None:
    shutil.copytree(files / "m.ew", tmp_path / "m.ew")
    damage(tmp_path / "m.ew")
    before = contents(tmp_path, files)
    done = call("edgewright " + line.format(f=files, t=tmp_path))
    assert (done.code, done.out) == (2, "")
    assert re.match(rf"error: {tmp_path}/.*{message}", done.err)
    assert len(done.err.splitlines()) == 1
    assert contents(tmp_path, files) == before


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("edgewright nonsense", "No such command 'nonsense'"),
        ("edgewright targets --jsn -", "No such option: --jsn"),
        ("ds_export", "Missing argument 'MODEL'"),
        ("ds_export m.onnx --format tflite", "Invalid value for '--format'"),
        ("edgewright export m.onnx --calibration x.npz --optimize", "is for --format onnx"),
        ("edgewright export m.onnx --format onnx --litert", "has no meaning for --format onnx"),
        (
            "edgewright export m.onnx --format litert --calibration x.npz",
            "has no meaning for --format litert",
        ),
        ("edgewright export m.onnx --format onnx --opset 21", "goes with --optimize"),
        ("edgewright export m.onnx --format onnx --calibration x.npz", "goes with --optimize"),
        ("edgewright export m.onnx --calibration x.npz --mask m", "goes with --lengths"),
        ("edgewright export m.onnx --backend onnxruntime --no-fallback", "is for --backend native"),
        ("edgewright export m.onnx --opset 21", "has no meaning for --format artifact"),
        ("edgewright export m.onnx --backend gpu", "Invalid value for '--backend'"),
        ("edgewright compress net.py:make --data d.npz --out a.pt2", "'--recipe'"),
        ("edgewright distill a.py:a --teacher a.py:b --data d --out a.pt2 --epochs 0", "'--epochs'"),
        ("edgewright distill a.py:a --teacher a.py:b --data d --out a.pt2 --seed -1", "'--seed'"),
        (
            "edgewright distill a.py:a --teacher a.py:b --data d --out a.pt2 --alpha 2",
            "alpha: 2.0 is out of range; it must be at least 0 and at most 1",
        ),
        (f"edgewright distill a.py:a --teacher a.py:b --data d --out a.pt2 --seed {1 << 63}", "seed: "),
        ("edgewright verify m.ew --reference m.onnx --cases 19", "'--cases'"),
        ("edgewright verify m.ew --reference m.onnx --seed -1", "'--seed'"),
        ("edgewright bench m.ew --rounds 0", "'--rounds'"),
        ("edgewright bench m.ew --batch 0", "'--batch'"),
        ("edgewright bench m.ew --threads 0", "'--threads'"),
        ("edgewright publish m.ew --repository repo --version 1.0.0", "Missing option '--report'"),
        (
            "edgewright publish m.ew --report r --repository r --version 1 --rollback-index -1",
            "'--rollback-index'",
        ),
    ],
)
def test_a_command_line_that_means_nothing_is_told_where(call: Call, line: str, message: str) -> None:
    done = call(line)
    assert (done.code, done.out) == (2, "")
    assert message in words(done.err)
    assert "Traceback" not in done.err


def test_a_version_that_is_none_leaves_the_repository_as_it_was(
    call: Call, files: Path, tmp_path: Path
) -> None:
    shutil.copytree(files / "m.ew", tmp_path / "m.ew")
    Repository.open(tmp_path / "repo", create=True)
    done = call(
        f"edgewright publish {tmp_path}/m.ew --report {files}/report.json --repository {tmp_path}/repo "
        "--version one"
    )
    assert (done.code, done.out) == (2, "")
    assert done.err == "error: version 'one': use a semantic version such as 1.2.0 or 1.2.0-rc.1\n"
    assert Repository.open(tmp_path / "repo").releases() == ()


def test_paths_are_shown_as_they_are(call: Call, files: Path, tmp_path: Path) -> None:
    place = tmp_path / "[red]" / "a[" / "b]"
    done = call(f"edgewright export {files}/m.onnx --calibration {files}/x.npz --out {place}/m.ew")
    assert done.code == 0
    assert f"{place}/m.ew" in done.out
    done = call(f"edgewright export {files}/net.pt2 --format onnx --out {place}/m.onnx")
    assert f"wrote {place}/m.onnx" in done.out
    done = call(f"edgewright verify {place}/m.ew --reference {files}/m.onnx --cases 20")
    assert f"{place}/m.ew: 20 cases" in done.out


# Processes

BLOCKING = """
import signal
import sys


def make():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin without it
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_ctrl_c_ends_with_130_and_leaves_nothing(files: Path, tmp_path: Path) -> None:
    (tmp_path / "blocking.py").write_text(BLOCKING)
    before = contents(tmp_path)
    options = shlex.split(RIGHT["compress"].format(f=files, t=tmp_path))
    with subprocess.Popen(
        [sys.executable, "-B", "-m", "edgewright", "compress", f"{tmp_path}/blocking.py:make", *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60) == ("", "stopped\n")
    assert process.returncode == 130
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("program", "code"),
    [("edgewright", 0), ("ds_export", 0), ("-m edgewright", 0), ("edgewright nonsense", 2)],
)
def test_installed_commands_start(program: str, code: int) -> None:
    name, *arguments = program.split()
    start = [sys.executable, name] if name == "-m" else [str(Path(sys.executable).with_name(name))]
    done = subprocess.run([*start, *arguments, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert "Usage: " in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
