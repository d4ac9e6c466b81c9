"""The script that builds a TensorRT engine, run for real with tools that only note how they were called."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from device.tiny import tiny_artifact
from edgewright_device import SYMMETRIC, Artifact, ArtifactError, write_artifact
from edgewright_device.tensorrt import build_script

# As trtexec 8.6 and later: it is linked to no libnvinfer, and says in its first line which one it opens.
TRTEXEC = """#!/bin/sh
echo "&&&& RUNNING TensorRT.trtexec [TensorRT v$(cat "$TOOLS/made")] # trtexec $*"
[ "$1" != --help ] || exit 0
echo "$@" >>"$TOOLS/calls"
[ ! -e "$TOOLS/fail" ] || exit 1
for word in "$@"; do case $word in --saveEngine=*) echo engine >"${word#--saveEngine=}" ;; esac; done
[ ! -e "$TOOLS/slow" ] || { touch "$TOOLS/started"; sleep 60; }
"""
LDD = '#!/bin/sh\necho "\tlibc.so.6 => /lib/libc.so.6 (0x00007f)"\ncat "$TOOLS/linked" 2>/dev/null || :\n'
LDCONFIG = '#!/bin/sh\ncat "$TOOLS/listed" 2>/dev/null || :\n'
SMI = '#!/bin/sh\ncat "$TOOLS/gpu"\n'


def with_symmetric(path: Path, extra: bytes = b"") -> Artifact:
    plain = tiny_artifact(path)
    files = {n: plain.read(n) for n in plain.files}
    return write_artifact(
        path,
        name=plain.name,
        producer=plain.producer,
        targets=plain.targets,
        inputs=plain.inputs,
        outputs=plain.outputs,
        files={**files, SYMMETRIC: files["model.onnx"] + extra},
    )


class Bench:
    """A device: TensorRT 10.3.0 and one GPU, until they are changed."""

    def __init__(self, folder: Path) -> None:
        self.tools, self.cache = folder / "tools", folder / "cache"
        self.tools.mkdir()
        for name, text in (("trtexec", TRTEXEC), ("ldd", LDD), ("ldconfig", LDCONFIG), ("nvidia-smi", SMI)):
            (self.tools / name).write_text(text)
            (self.tools / name).chmod(0o755)
        self.gpu("NVIDIA T4, 7.5")
        self.version("10.3.0")

    def gpu(self, name: str) -> None:
        (self.tools / "gpu").write_text(f"{name}\n")

    def version(self, number: str) -> None:
        """Installs libnvinfer.so of a version, where the loader finds it, and a trtexec made for it."""
        major, minor, patch = map(int, number.split("."))
        made = (10_000 if major >= 10 else 1_000) * major + 100 * minor + patch
        (self.tools / "made").write_text(str(made))
        library = self.tools / f"libnvinfer.so.{major}"
        library.unlink(missing_ok=True)
        (self.tools / f"libnvinfer.so.{number}").touch()
        library.symlink_to(f"libnvinfer.so.{number}")

    def start(self, artifact: Artifact, script: str | None = None, **more: str) -> subprocess.Popen[str]:
        file = self.tools / "build.sh"
        file.write_text(script or build_script(artifact))
        environment = {
            "PATH": f"{self.tools}:{os.environ['PATH']}",
            "TOOLS": str(self.tools),
            "DEVICE_TREE_MODEL": "/none",
            "LD_LIBRARY_PATH": f"/none:{self.tools}",
        }
        return subprocess.Popen(
            ["sh", str(file), str(artifact.path), str(self.cache)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment | more,
            start_new_session=True,
        )

    def build(
        self, artifact: Artifact, script: str | None = None, **more: str
    ) -> subprocess.CompletedProcess[str]:
        process = self.start(artifact, script, **more)
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def calls(self) -> list[str]:
        log = self.tools / "calls"
        return log.read_text().splitlines() if log.exists() else []


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return with_symmetric(tmp_path / "tiny.ew")


def test_an_engine_is_built_once_and_found_again(bench: Bench, artifact: Artifact) -> None:
    first, second = bench.build(artifact), bench.build(artifact)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr
    assert first.stdout == second.stdout
    assert Path(first.stdout.strip()).read_text() == "engine\n"
    (call,) = bench.calls()
    assert "--stronglyTyped --skipInference" in call
    assert "--minShapes=x:1x16 --optShapes=x:1x16 --maxShapes=x:8x16" in call


def test_another_gpu_version_model_or_batch_is_another_engine(
    bench: Bench, artifact: Artifact, tmp_path: Path
) -> None:
    engines = [bench.build(artifact).stdout]
    bench.gpu("NVIDIA A100, 8.0")
    engines.append(bench.build(artifact).stdout)
    bench.version("10.4.0")
    engines.append(bench.build(artifact).stdout)
    other = with_symmetric(tmp_path / "other" / "tiny.ew", b"\n")
    engines.append(bench.build(other).stdout)
    engines.append(bench.build(other, build_script(other, (1, 4, 16))).stdout)
    assert len(set(engines)) == len(bench.calls()) == 5


def test_a_jetson_is_known_by_its_board(bench: Bench, artifact: Artifact, tmp_path: Path) -> None:
    board = tmp_path / "model"
    board.write_bytes(b"NVIDIA Jetson Orin Nano\0")
    here = bench.build(artifact, DEVICE_TREE_MODEL=str(board))
    assert here.returncode == 0
    assert here.stdout != bench.build(artifact).stdout


def test_version_8_is_asked_in_its_own_words(bench: Bench, artifact: Artifact) -> None:
    bench.version("8.6.2")
    assert bench.build(artifact).returncode == 0
    assert "--int8 --fp16 --buildOnly" in bench.calls()[0]


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("linked", "\tlibnvinfer.so.8 => {tools}/libnvinfer.so.8 (0x00007f)\n"),
        ("listed", "\tlibnvinfer.so.8 (libc6,AArch64) => {tools}/libnvinfer.so.8\n"),
    ],
)
def test_the_library_is_found_where_trtexec_is_linked_to_it_or_the_loader_lists_it(
    bench: Bench, artifact: Artifact, file: str, line: str
) -> None:
    bench.version("8.5.2")
    (bench.tools / file).write_text(line.format(tools=bench.tools))
    engines = [bench.build(artifact, LD_LIBRARY_PATH="").stdout]
    bench.version("8.5.3")
    engines.append(bench.build(artifact, LD_LIBRARY_PATH="").stdout)
    assert len(set(engines)) == len(bench.calls()) == 2


def test_of_two_installed_versions_trtexecs_own_counts(bench: Bench, artifact: Artifact) -> None:
    bench.version("8.6.1")
    bench.version("10.3.0")
    first = bench.build(artifact)
    (bench.tools / "libnvinfer.so.8").unlink()
    assert bench.build(artifact).stdout == first.stdout


def test_a_library_that_is_nowhere_is_told(bench: Bench, artifact: Artifact) -> None:
    done = bench.build(artifact, LD_LIBRARY_PATH="")
    assert done.returncode == 2
    assert "libnvinfer.so.10 was not found" in done.stderr
    assert not bench.calls()


def test_a_build_that_is_cut_off_leaves_nothing(bench: Bench, artifact: Artifact) -> None:
    (bench.tools / "slow").touch()
    process = bench.start(artifact)
    deadline = time.monotonic() + 20
    while not (bench.tools / "started").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert list(bench.cache.iterdir())
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode != 0
    assert not list(bench.cache.iterdir())


def test_a_build_that_fails_leaves_nothing(bench: Bench, artifact: Artifact) -> None:
    (bench.tools / "fail").touch()
    done = bench.build(artifact)
    assert done.returncode == 1
    assert done.stdout == ""
    assert not list(bench.cache.iterdir())


def test_a_script_is_for_one_artifact(bench: Bench, artifact: Artifact, tmp_path: Path) -> None:
    other = with_symmetric(tmp_path / "other" / "tiny.ew", b"\n")
    done = bench.build(other, build_script(artifact))
    assert done.returncode == 2
    assert "is another artifact than this script was made for" in done.stderr


def test_without_trtexec_it_says_what_to_install(bench: Bench, artifact: Artifact) -> None:
    done = bench.build(artifact, TRTEXEC="/none/trtexec")
    assert done.returncode == 2
    assert "apt install libnvinfer-bin" in done.stderr


def test_an_artifact_for_other_targets_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="export it for a target with TensorRT"):
        build_script(tiny_artifact(tmp_path / "plain.ew"))


@pytest.mark.parametrize("batches", [(1, 8), (0, 1, 8), (8, 1, 1)])
def test_batches_that_are_no_three_sizes_in_order_are_refused(
    artifact: Artifact, batches: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match="the smallest, the usual and the largest batch"):
        build_script(artifact, batches)
