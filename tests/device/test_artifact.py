"""The artifact: what was written is what is opened, and nothing damaged, hostile or half written is."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from device.tiny import samples, tiny_artifact
from edgewright_device import (
    Artifact,
    ArtifactError,
    artifact,
    encode_golden,
    golden,
    write_artifact,
    write_report,
)
from edgewright_device.golden import decode_golden

FILES = ("golden.npz", "model.onnx", "plan.bin", "weights.safetensors")


@pytest.fixture
def good(tmp_path: Path) -> Artifact:
    return tiny_artifact(tmp_path / "good.ew")


def contents(of: Artifact) -> dict[str, Any]:
    """What `write_artifact` takes to write the same again."""
    return {
        "name": of.name,
        "producer": of.producer,
        "targets": of.targets,
        "inputs": of.inputs,
        "outputs": of.outputs,
        "files": {name: of.read(name) for name in of.files},
    }


def edit_manifest(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads((path / "manifest.json").read_bytes())
    change(data)
    (path / "manifest.json").write_text(json.dumps(data))


def put(path: Path, name: str, data: bytes) -> None:
    """Replaces a file, and its digest with it, as who writes the manifest could."""
    (path / name).write_bytes(data)
    listed = {"size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    edit_manifest(path, lambda m: m["files"].update({name: listed}))


def test_what_was_written_is_what_is_opened(good: Artifact) -> None:
    again = Artifact.open(str(good.path))
    assert again == good
    assert (again.name, again.producer, again.targets) == ("tiny", "tests", ("x86-avx2",))
    assert [p.shape for p in (*again.inputs, *again.outputs)] == [(None, 16), (None, 5)]
    assert tuple(again.files) == FILES
    assert again.digest == hashlib.sha256((good.path / "manifest.json").read_bytes()).hexdigest()
    assert again.size_bytes == sum(f.stat().st_size for f in good.path.iterdir())
    inputs, outputs = again.golden()
    np.testing.assert_array_equal(inputs["x"], samples(8))
    assert outputs["y"].shape == (8, 5)


def test_the_same_contents_give_the_same_digest(good: Artifact, tmp_path: Path) -> None:
    assert write_artifact(tmp_path / "other.ew", **contents(good)).digest == good.digest


# What is not an artifact


def test_missing_directory_and_file_in_its_place_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"nowhere\.ew: does not exist"):
        Artifact.open(tmp_path / "nowhere.ew")
    (tmp_path / "file.ew").touch()
    with pytest.raises(ArtifactError, match=r"file\.ew: is a file, not a directory"):
        Artifact.open(tmp_path / "file.ew")


def test_directory_without_a_manifest_is_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"manifest\.json: missing"):
        Artifact.open(tmp_path)


@pytest.mark.parametrize("name", ["manifest.json", *FILES])
@pytest.mark.parametrize("damage", ["gone", "truncated", "flipped", "longer", "link", "directory", "pipe"])
def test_any_damage_to_any_file_is_refused_and_names_it(good: Artifact, name: str, damage: str) -> None:
    file = good.path / name
    data = bytearray(file.read_bytes())
    file.unlink()
    if damage == "truncated":
        file.write_bytes(data[:-1])
    elif damage == "flipped":
        # In the manifest the first byte, for another digit in it is another manifest, with another digest.
        data[0 if name == "manifest.json" else len(data) // 2] ^= 4
        file.write_bytes(data)
    elif damage == "longer":
        file.write_bytes(data + b"x")
    elif damage == "link":
        away = good.path.parent / "away"
        away.write_bytes(data)
        file.symlink_to(away)
    elif damage == "directory":
        file.mkdir()
    elif damage == "pipe":
        os.mkfifo(file)
    if name == "manifest.json" and damage == "truncated":
        file.write_bytes(data[:-2])  # a missing last newline harms nobody
    with pytest.raises(ArtifactError, match=f"{good.path.name}/{name}: "):
        Artifact.open(good.path)


def test_another_manifest_is_another_digest(good: Artifact) -> None:
    (good.path / "manifest.json").write_bytes((good.path / "manifest.json").read_bytes() + b" ")
    assert Artifact.open(good.path).digest != good.digest


@pytest.mark.parametrize("extra", ["readme.txt", ".hidden", "model.pkl", "folder", "model.tflite"])
def test_a_file_that_the_manifest_does_not_list_is_refused(good: Artifact, extra: str) -> None:
    if extra == "folder":
        (good.path / extra).mkdir()
    else:
        (good.path / extra).touch()
    with pytest.raises(ArtifactError, match=f"{extra}: does not belong"):
        Artifact.open(good.path)


def test_a_file_changed_after_opening_is_not_read(good: Artifact) -> None:
    file = good.path / "plan.bin"
    file.write_bytes(bytes(len(file.read_bytes())))
    with pytest.raises(ArtifactError, match=r"plan\.bin: changed since"):
        good.read("plan.bin")
    with pytest.raises(ArtifactError, match=r"has no model\.tflite"):
        good.read("model.tflite")


# The manifest


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b'{"format": ' + b"9" * 5000 + b"}", "not JSON"),
        (b"[1]", "not a JSON object"),
        (b"{}", "format None; this version reads formats 1 and 2"),
        (b'{"format": 1}', "'files' is missing"),
        (b'{"format": 1, "files": 3}', "damaged"),
        (b" " * ((1 << 20) + 1), "larger than 1048576 bytes"),
    ],
)
def test_manifest_that_is_none_is_refused(good: Artifact, text: bytes, message: str) -> None:
    (good.path / "manifest.json").write_bytes(text)
    with pytest.raises(ArtifactError, match=rf"manifest\.json: .*{message}"):
        Artifact.open(good.path)


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "another format": (lambda m: m.update(format=3), "format 3; this version reads formats 1 and 2"),
    "format as text": (lambda m: m.update(format="1"), "format '1'"),
    "format as a truth": (lambda m: m.update(format=True), "format True"),
    "no name": (lambda m: m.pop("name"), "'name' is missing"),
    "name with a path": (lambda m: m.update(name="../x"), r"'\.\./x' is not"),
    "name of nothing": (lambda m: m.update(name=""), "'' is not"),
    "name too long": (lambda m: m.update(name="x" * 65), "xxx"),
    "name with a newline": (lambda m: m.update(name="x\n"), "is not"),
    "producer a number": (lambda m: m.update(producer=3), "3 is not"),
    "targets as text": (lambda m: m.update(targets="x86"), "'x86' is not a list"),
    "targets as numbers": (lambda m: m.update(targets=[1]), "1 is not"),
    "files as pairs": (lambda m: m.update(files=list(m["files"].items())), "damaged"),
    "unknown file": (lambda m: m["files"].update({"a.pkl": m["files"]["plan.bin"]}), r"lists 'a\.pkl'"),
    "file outside": (lambda m: m["files"].update({"../x": m["files"]["plan.bin"]}), r"lists '\.\./x'"),
    "no weights": (lambda m: m["files"].pop("weights.safetensors"), r"does not list weights\.safetensors"),
    "no golden": (lambda m: m["files"].pop("golden.npz"), r"does not list golden\.npz"),
    "no onnx": (lambda m: m["files"].pop("model.onnx"), r"does not list model\.onnx"),
    "size negative": (lambda m: m["files"]["plan.bin"].update(size_bytes=-1), "-1 is not a whole number"),
    "size a float": (lambda m: m["files"]["plan.bin"].update(size_bytes=1.0), "1.0 is not a whole number"),
    "size a truth": (lambda m: m["files"]["plan.bin"].update(size_bytes=True), "True is not a whole number"),
    "size huge": (lambda m: m["files"]["plan.bin"].update(size_bytes=10**30), "not a whole number"),
    "digest short": (lambda m: m["files"]["plan.bin"].update(sha256="00"), "'00' is not"),
    "digest shouted": (lambda m: m["files"]["plan.bin"].update(sha256="A" * 64), "AAA"),
    "no inputs": (lambda m: m.update(inputs=[]), "1 to 64 inputs"),
    "no outputs": (lambda m: m.update(outputs=[]), "1 to 64 inputs"),
    "too many inputs": (lambda m: m.update(inputs=m["inputs"] * 65), "1 to 64 inputs"),
    "input twice": (lambda m: m.update(inputs=m["inputs"] * 2), "the same name"),
    "inputs an object": (lambda m: m.update(inputs=m["inputs"][0]), "not a list"),
    "port a number": (lambda m: m.update(inputs=[1]), "damaged"),
    "shape as text": (lambda m: m["inputs"][0].update(shape="N8"), "'N8' is not a list"),
    "shape without batch": (lambda m: m["inputs"][0].update(shape=[1, 8]), "null for the batch"),
    "shape of batch alone": (lambda m: m["inputs"][0].update(shape=[None]), "null for the batch"),
    "shape of nothing": (lambda m: m["inputs"][0].update(shape=[]), "damaged"),
    "shape too deep": (lambda m: m["inputs"][0].update(shape=[None, *[1] * 8]), "null for the batch"),
    "size of zero": (lambda m: m["inputs"][0].update(shape=[None, 0]), "0 is not a whole number from 1"),
    "size too large": (lambda m: m["inputs"][0].update(shape=[None, (1 << 20) + 1]), "whole number"),
    "size free": (
        lambda m: m["inputs"][0].update(shape=[None, None]),
        "null for the batch, then 1 to 7 sizes",
    ),
    "another dtype": (lambda m: m["inputs"][0].update(dtype="float64"), "neither float32 nor int64"),
    "outputs of int64": (
        lambda m: m["outputs"][0].update(dtype="int64", scale=0.0, zero_point=0),
        "outputs are float32",
    ),
    "int64 on a grid": (lambda m: m["inputs"][0].update(dtype="int64"), "int64 has no scale"),
    "port without a name": (lambda m: m["inputs"][0].update(name=""), "1 to 255"),
    "port with a long name": (lambda m: m["inputs"][0].update(name="x" * 256), "1 to 255"),
    "port with half a character": (lambda m: m["inputs"][0].update(name="\ud800"), "damaged"),
    "scale of zero": (lambda m: m["inputs"][0].update(scale=0.0), "the scale positive"),
    "scale not a number": (lambda m: m["inputs"][0].update(scale=float("nan")), "finite"),
    "scale without end": (lambda m: m["inputs"][0].update(scale=float("inf")), "finite"),
    "scale as text": (lambda m: m["inputs"][0].update(scale="1"), "'1' is not a number"),
    "scale beyond floats": (lambda m: m["inputs"][0].update(scale=10**400), "too large"),
    "zero point of 256": (lambda m: m["inputs"][0].update(zero_point=256), "256 is not a whole number"),
    "range without end": (lambda m: m["inputs"][0].update(maximum=float("inf")), "finite"),
    "range turned round": (lambda m: m["inputs"][0].update(minimum=3, maximum=-3), "wrong way round"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_manifest_that_breaks_a_rule_is_refused(good: Artifact, name: str) -> None:
    change, message = CHANGES[name]
    edit_manifest(good.path, change)
    with pytest.raises(ArtifactError, match=rf"manifest\.json: .*{message}"):
        Artifact.open(good.path)


# Golden vectors


def npz(**members: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"{name.replace('__', '.')}.npy", data)
    return out.getvalue()


def npy(array: Any, *, pickled: bool = False) -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=pickled)
    return out.getvalue()


def packed() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("input.x.npy", npy(np.zeros((1 << 20, 1), np.float32)))
    return out.getvalue()


def lying_header() -> bytes:
    """A few bytes that say they hold 4 TiB."""
    data = npy(np.zeros((1, 4), np.float32))
    return data.replace(b"(1, 4), }" + b" " * 12, b"(1099511627776,), }   "[:21].ljust(21))


X = npy(np.zeros((2, 16), np.float32))
HOSTILE: dict[str, bytes] = {
    "nothing": b"",
    "no zip": b"PK\x03\x04 and no more",
    "a zip cut short": npz(input__x=X, output__y=X)[:-30],
    "no members": npz(),
    "no outputs": npz(input__x=X),
    "a stranger": npz(input__x=X, output__y=X, other__z=X),
    "a pickle": npz(input__x=npy(np.array([{}]), pickled=True), output__y=X),
    "raw pickle": npz(input__x=b"\x80\x04N.", output__y=X),
    "float64": npz(input__x=npy(np.zeros((2, 16))), output__y=X),
    "Fortran order": npz(input__x=npy(np.zeros((2, 16), np.float32, order="F")), output__y=X),
    "no batch": npz(input__x=npy(np.float32(0)), output__y=X),
    "cut short": npz(input__x=X[:-1], output__y=X),
    "too long": npz(input__x=X + b"\0", output__y=X),
    "a packed bomb": packed(),
    "a header that lies": npz(input__x=lying_header(), output__y=X),
    "a header of code": npz(input__x=X.replace(b"(2, 16)", b"f(2,16)"), output__y=X),
    "another version": npz(input__x=X[:6] + b"\x02" + X[7:], output__y=X),
}


def test_the_lying_header_lies() -> None:
    assert b"1099511627776" in lying_header()
    assert len(lying_header()) < 200


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_golden_vectors_are_refused_before_they_take_memory(good: Artifact, name: str) -> None:
    put(good.path, "golden.npz", HOSTILE[name])
    opened = Artifact.open(good.path)
    with pytest.raises(ArtifactError, match=r"golden\.npz: "):
        opened.golden()


def test_golden_vectors_beyond_the_limit_are_not_unpacked(
    good: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encode_golden({"x": np.zeros((1, 64), np.float32)}, {"y": np.zeros((1, 64), np.float32)})
    for module in (artifact, golden):
        monkeypatch.setattr(module, "MAX_GOLDEN_BYTES", 511)
    with pytest.raises(ArtifactError, match="unpacks to more than 511 bytes"):
        decode_golden(data)
    with pytest.raises(ArtifactError, match=r"golden\.npz: larger than 511 bytes"):
        good.golden()


@pytest.mark.parametrize("shape", [(1,), (3, 2), (1, 2, 3, 4, 5, 6, 7), (12345, 1)])
def test_golden_vectors_come_back_as_they_went(shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    found = decode_golden(
        encode_golden({"a.b": x}, {"y": x[:1]}, values={"v": x}, shorter={32: ({"a": x}, {})})
    )
    assert found.keys() == {"input", "output", "value", "input-32"}
    assert found["input"]["a.b"].tobytes() == x.tobytes()
    assert found["input"]["a.b"].shape == shape
    assert found["output"]["y"].tobytes() == x[:1].tobytes()


# Writing


def test_an_artifact_replaces_the_one_before_it(good: Artifact) -> None:
    files = contents(good)
    files["name"] = "renamed"
    new = write_artifact(good.path, **files)
    assert new.name == Artifact.open(good.path).name == "renamed"
    assert sorted(p.name for p in good.path.parent.iterdir()) == ["good.ew"]


@pytest.mark.parametrize("failing", ["weights.safetensors", "manifest.json", "the rename"])
def test_a_write_that_fails_in_the_middle_leaves_the_old_artifact(
    good: Artifact, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    write, rename = artifact._write, Path.rename

    def full(file: Path, data: bytes) -> None:
        if file.name == failing:
            raise OSError(28, "No space left on device")
        write(file, data)

    def refused(self: Path, to: Path) -> Path:
        if to.name == "good.ew" and "old" not in self.name:
            raise OSError(5, "Input/output error")
        return rename(self, to)

    monkeypatch.setattr(artifact, "_write", full)
    if failing == "the rename":
        monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(OSError, match=r"No space|Input/output"):
        write_artifact(good.path, **{**contents(good), "name": "new"})
    monkeypatch.undo()
    assert Artifact.open(good.path) == good
    assert sorted(p.name for p in good.path.parent.iterdir()) == ["good.ew"]


@pytest.mark.parametrize("there", ["file", "folder", "somebody's manifest", "dangling link"])
def test_what_is_not_an_artifact_is_left_alone(good: Artifact, tmp_path: Path, there: str) -> None:
    place = tmp_path / "place"
    if there == "file":
        place.write_text("mine")
    elif there == "dangling link":
        place.symlink_to(tmp_path / "nowhere")
    else:
        place.mkdir()
        (place / "thesis.tex").write_text("mine")
        if there == "somebody's manifest":
            (place / "manifest.json").write_text('{"name": "a browser extension"}')
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ArtifactError, match="exists and is not an artifact"):
        write_artifact(place, **contents(good))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_damaged_artifact_may_be_replaced(good: Artifact) -> None:
    files = contents(good)
    (good.path / "plan.bin").unlink()
    (good.path / "manifest.json").write_text("{")
    assert write_artifact(good.path, **files).digest == good.digest


@pytest.mark.parametrize("name", ["", ".x", "a b", "a/b", "x" * 65, "naïve"])
def test_a_name_that_no_reader_takes_is_not_written(good: Artifact, tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="artifact name"):
        write_artifact(tmp_path / "new.ew", **{**contents(good), "name": name})
    assert not (tmp_path / "new.ew").exists()


def test_files_that_no_reader_takes_are_not_written(good: Artifact, tmp_path: Path) -> None:
    files = contents(good)
    files["files"]["x.pkl"] = b""
    with pytest.raises(ValueError, match=r"no artifact has a file 'x\.pkl'"):
        write_artifact(tmp_path / "new.ew", **files)
    del files["files"]["x.pkl"], files["files"]["golden.npz"]
    with pytest.raises(ValueError, match=r"needs 'golden\.npz'"):
        write_artifact(tmp_path / "new.ew", **files)
    with pytest.raises(ValueError, match="the same name"):
        write_artifact(tmp_path / "new.ew", **{**contents(good), "inputs": good.inputs * 2})
    assert not (tmp_path / "new.ew").exists()


# The report


def test_a_report_is_read_back_and_no_part_of_the_digest(good: Artifact) -> None:
    assert good.report() is None
    write_report(good, json.dumps({"artifact": good.digest, "passed": True}).encode())
    assert good.report() == {"artifact": good.digest, "passed": True}
    assert Artifact.open(good.path) == good
    assert sorted(p.name for p in good.path.parent.iterdir()) == ["good.ew"]


def test_a_report_about_another_artifact_is_refused(good: Artifact) -> None:
    write_report(good, b'{"artifact": "0000", "passed": true}')
    with pytest.raises(ArtifactError, match=r"report\.json: is about another artifact"):
        good.report()


@pytest.mark.parametrize("text", [b"", b"[]", b"{"])
def test_a_damaged_report_is_refused(good: Artifact, text: bytes) -> None:
    write_report(good, text)
    with pytest.raises(ArtifactError, match=r"report\.json: not"):
        good.report()


def test_a_report_behind_a_link_is_refused(good: Artifact, tmp_path: Path) -> None:
    (tmp_path / "away").write_text(json.dumps({"artifact": good.digest}))
    (good.path / "report.json").symlink_to(tmp_path / "away")
    with pytest.raises(ArtifactError, match=r"report\.json: not a plain file"):
        good.report()


def test_a_report_half_written_never_closes_the_artifact(
    good: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the power failed before the rename: what had been written by then stays behind."""

    def nothing(self: Path, missing_ok: bool = False) -> None:
        pass

    def cut(self: Path, to: Path) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "unlink", nothing)
    monkeypatch.setattr(Path, "replace", cut)
    with pytest.raises(KeyboardInterrupt):
        write_report(good, b"{}")
    monkeypatch.undo()
    assert Artifact.open(good.path) == good
