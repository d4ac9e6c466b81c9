"""compare: bits, steps, decisions, accuracy and time of two models; and `edgewright compare`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

import edgewright as ew
from edgewright import cli
from edgewright.comparing import compare
from edgewright.decisions import compare_decisions
from edgewright.differences import compare_outputs
from edgewright.errors import VerifyError
from edgewright.exporting import export
from edgewright.sides import Side
from edgewright_device import Artifact, ArtifactError
from edgewright_kernels import cpu_paths
from sdk.graphs import corners_and_more, mlp, normal, saved

X = corners_and_more(8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two networks as files and as artifacts, and samples that the first one labels."""
    place = tmp_path_factory.mktemp("compare")
    for name, seed in (("one", 0), ("other", 1)):
        path = saved(mlp(seed), place / f"{name}.onnx")
        export(path, target="x86-avx2", calibration=X, out=place / f"{name}.ew")
    x = np.clip(normal(400, 8, seed=3), -1, 1)
    labels = compare_labels(place / "one.onnx", x)
    np.savez(place / "labelled.npz", x=x, y=labels)
    return place


def compare_labels(path: Path, x: Any) -> Any:
    from edgewright.graph import float_function

    return float_function(path)([x])[0].argmax(1)


def test_an_artifact_against_itself_has_the_same_bits_and_is_not_called_faster(folder: Path) -> None:
    found = compare(folder / "one.ew", Artifact.open(folder / "one.ew"), equivalent=0.5)
    assert found.outputs.differing == 0
    assert found.latency.verdict == "equivalent"
    assert found.size_a_bytes == found.size_b_bytes
    assert found.decisions is not None
    assert found.decisions.flips == 0
    assert found.held


def test_kernel_paths_and_threads_of_one_artifact_are_sides(folder: Path) -> None:
    before = os.environ.get("EDGEWRIGHT_CPU")
    found = compare(
        Side(path=folder / "one.ew", kernels=cpu_paths()[-1]),
        Side(path=folder / "one.ew", threads=2),
        equivalent=0.9,
        max_pairs=20,
    )
    assert os.environ.get("EDGEWRIGHT_CPU") == before
    assert cpu_paths()[-1] in found.a
    assert "2 threads" in found.b
    assert found.outputs.differing == 0


def test_an_onnx_file_runs_in_stock_onnx_runtime(folder: Path) -> None:
    with np.load(folder / "labelled.npz") as data:
        found = ew.compare(
            folder / "one.onnx", folder / "one.ew", data=data["x"], labels=data["y"], max_pairs=10, margin=0.3
        )
    assert found.size_a_bytes == (folder / "one.onnx").stat().st_size
    assert found.decisions is not None
    assert found.decisions.accuracy is not None
    assert found.decisions.accuracy.a == 1  # it made the labels
    assert found.decisions.flips == round(400 * (1 - found.decisions.accuracy.b))
    assert found.outputs.differing > 0
    assert found.outputs.sqnr_db > 20
    assert sum(found.outputs.by_steps.values()) == found.outputs.differing
    assert [c.verdict for c in found.checks] == ["passed"]


def test_another_model_loses_more_than_the_margin(folder: Path) -> None:
    with np.load(folder / "labelled.npz") as data:
        found = compare(
            folder / "one.ew",
            folder / "other.ew",
            data=data["x"],
            labels=data["y"],
            reference=folder / "one.onnx",
            margin=0.05,
            max_pairs=10,
        )
    assert {c.name: c.verdict for c in found.checks} == {"accuracy": "failed", "agreement": "failed"}
    assert not found.held
    assert found.decisions is not None
    assert found.decisions.agreement is not None
    assert found.decisions.agreement.a > 0.9


def test_few_samples_cannot_tell_and_say_how_many_would(folder: Path) -> None:
    with np.load(folder / "labelled.npz") as data:
        found = compare(
            folder / "one.onnx",
            folder / "one.ew",
            data=data["x"][:30],
            labels=data["y"][:30],
            margin=0.01,
            max_pairs=10,
        )
    assert [c.verdict for c in found.checks] == ["cannot tell"]
    assert "more are needed" in found.checks[0].remedy


def test_differences_are_counted_in_bits_and_steps() -> None:
    a = np.array([[0.0, 1.0, 2.0, 3.0, 4.0]], np.float32)
    b = np.array([[-0.0, 1.5, 2.0, 4.0, 9.0]], np.float32)
    found = compare_outputs([a], [b], scales=(0.5,))
    assert (found.values, found.differing, found.largest) == (5, 4, 5.0)
    assert found.by_steps == {"0": 1, "1": 1, "2": 1, "3 or more": 1}
    assert compare_outputs([a], [a.copy()], scales=()).differing == 0
    assert compare_outputs([a], [a * np.float32(np.nan)], scales=(0.5,)).by_steps["3 or more"] == 5
    with pytest.raises(VerifyError, match="different shapes"):
        compare_outputs([a], [a[:, :2]], scales=())


def test_decisions_are_counted_pair_by_pair() -> None:
    a, b, right = np.array([0, 1, 2, 2, 1]), np.array([0, 1, 1, 2, 0]), np.array([0, 1, 1, 1, 1])
    found = compare_decisions(a, b, labels=right, reference=a)
    assert found.flips == 2
    assert found.accuracy is not None
    assert (found.accuracy.gained, found.accuracy.lost) == (1, 1)
    assert found.agreement is not None
    assert (found.agreement.a, found.agreement.b) == (1.0, 0.6)
    with pytest.raises(VerifyError, match="labels: 4 decisions for 5 samples"):
        compare_decisions(a, b, labels=right[:4], reference=None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("m.ew@threads=many", "threads must be a number"),
        ("m.ew@speed=9", "is not backend=NAME"),
        ("m.ew@backend=cuda", "choose one of"),
        ("m.ew@kernels=mmx", "this CPU can run"),
        ("m.ew@backend=onnxruntime,kernels=scalar", "a choice of the native engine"),
        ("m.onnx@backend=native", "stock ONNX Runtime runs it"),
        ("m.ew@threads=65", "1 to 64"),
    ],
)
def test_a_side_that_cannot_be_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Side.parse(text)


def test_a_side_is_read_as_it_is_written(tmp_path: Path) -> None:
    assert Side.parse("m.ew") == Side(path=Path("m.ew"))
    assert Side.parse("m.ew@threads=2,backend=onnxruntime") == Side(
        path=Path("m.ew"), threads=2, backend="onnxruntime"
    )
    odd = tmp_path / "a@b.onnx"
    odd.touch()
    assert Side.parse(str(odd)) == Side(path=odd)


def test_what_cannot_be_compared_is_refused(folder: Path, tmp_path: Path) -> None:
    one = folder / "one.ew"
    with pytest.raises(VerifyError, match="carry no samples"):
        compare(folder / "one.onnx", folder / "other.onnx")
    with pytest.raises(ValueError, match="labels, or a reference"):
        compare(one, one, margin=0.01)
    with pytest.raises(VerifyError, match="data does not fit"):
        compare(one, one, data=X[:, :7])
    with pytest.raises(VerifyError, match="3 class numbers"):
        compare(one, one, data=X[:3], labels=[1, 2])
    with pytest.raises(VerifyError, match="data is for inputs"):
        compare(one, one, data={"p": X, "q": X})
    with pytest.raises(ArtifactError):
        compare(one, tmp_path / "none.ew")
    wide = saved(mlp(classes=7), tmp_path / "wide.onnx")
    with pytest.raises(VerifyError, match="different shapes"):
        compare(one, wide)
    with pytest.raises(VerifyError, match="the reference"):
        compare(one, one, reference=tmp_path / "none.onnx")


def test_weights_beside_an_onnx_file_count(folder: Path, tmp_path: Path) -> None:
    model = onnx.load(folder / "one.onnx")
    onnx.save(model, tmp_path / "out.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    (tmp_path / "out.onnx.old").write_bytes(b"x" * 10_000)
    found = compare(folder / "one.ew", tmp_path / "out.onnx", max_pairs=10)
    assert found.size_b_bytes == sum((tmp_path / n).stat().st_size for n in ("out.onnx", "w.bin"))


# On the command line


def edgewright(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from edgewright.cli import main; main()", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200", "NO_COLOR": "1"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_the_command_tells_a_verdict_and_keeps_its_json(folder: Path) -> None:
    done = edgewright(
        *("compare", "one.onnx", "other.ew", "--data", "labelled.npz", "--margin", "2", "--json", "-"),
        cwd=folder,
    )
    assert done.returncode == 1, done.stderr
    data = json.loads(done.stdout)
    assert set(data) == {
        *("format", "held", "a", "b", "size_a_bytes", "size_b_bytes", "latency", "outputs", "decisions"),
        *("checks", "batch", "seed"),
    }
    assert set(data["latency"]) == {
        *("verdict", "ratio", "interval", "equivalent", "pairs", "pairs_needed"),
        *("median_a_ms", "median_b_ms", "min_a_ms", "min_b_ms"),
    }
    assert (data["format"], data["held"]) == (1, False)
    assert "accuracy that B loses against A" in done.stderr
    assert "failed" in done.stderr
    assert "2 allowed" in done.stderr


def test_the_command_ends_with_0_where_the_bounds_hold_and_with_2_for_bad_use(folder: Path) -> None:
    held = edgewright("compare", "one.ew", "one.ew", "--max-slowdown", "80%", cwd=folder)
    assert held.returncode == 0, held.stderr
    assert "how much slower B is than A" in held.stdout
    assert "passed" in held.stdout
    missing = edgewright("compare", "one.ew", "none.ew", cwd=folder)
    assert missing.returncode == 2
    assert missing.stderr.startswith("error: none.ew")
    assert "Traceback" not in missing.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("one.ew@kernels=mmx", "one.ew"), "this CPU can run"),
        (("one.ew", "one.ew", "--equivalent", "much"), "give a percentage"),
        (("one.ew", "one.ew", "--equivalent", "0%"), "between 0 and 1"),
        (("one.ew", "one.ew", "--margin", "1"), "labels, or a reference"),
    ],
)
def test_bad_use_is_told_in_a_sentence(folder: Path, arguments: tuple[str, ...], message: str) -> None:
    paths = [str(folder / a) if a.startswith("one") else a for a in arguments]
    done = CliRunner().invoke(cli.app, ["compare", *paths], env={"COLUMNS": "200"})
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.replace("│", " ").split())
