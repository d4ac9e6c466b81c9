"""The C interface: the bits of Runner, nothing but C in the header, a sentence for each mistake."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import threading
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from edgewright.exporting import export
from edgewright_device import Runner
from edgewright_kernels import cpu_paths, reference
from edgewright_kernels import plan as ir
from kernels.cases import write_cases
from kernels.native_build import ROOT, built
from kernels.plans import Draw, small_cnn
from sdk.graphs import mlp, normal, saved

OK, INVALID, DAMAGED, UNSUPPORTED, IO = range(5)
HEADER = ROOT / "kernels" / "src" / "edgewright.h"


class Port(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("name_size", ctypes.c_size_t),
        ("dtype", ctypes.c_int),
        ("rank", ctypes.c_size_t),
        ("shape", ctypes.c_int64 * 6),
        ("sample_bytes", ctypes.c_size_t),
    )


class Buffer(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("size_bytes", ctypes.c_size_t))


class Library:
    """libedgewright.so as a C program sees it."""

    def __init__(self, path: Path) -> None:
        self.c = ctypes.CDLL(str(path))
        for name in ("error", "version", "path", "usable_path"):
            getattr(self.c, f"edgewright_{name}").restype = ctypes.c_char_p
        for name in ("input_count", "output_count", "memory_bytes", "packed_bytes"):
            getattr(self.c, f"edgewright_{name}").restype = ctypes.c_size_t

    def error(self) -> str:
        return str(self.c.edgewright_error().decode())

    def open(self, folder: Path, path: str | None = None) -> tuple[int, ctypes.c_void_p]:
        model = ctypes.c_void_p(1)
        name = None if path is None else path.encode()
        return self.c.edgewright_open(os.fsencode(folder), name, ctypes.byref(model)), model

    def open_bytes(self, plan: bytes, weights: bytes, path: str | None = None) -> tuple[int, ctypes.c_void_p]:
        model = ctypes.c_void_p(1)
        name = None if path is None else path.encode()
        status = self.c.edgewright_open_bytes(
            plan,
            ctypes.c_size_t(len(plan)),
            weights,
            ctypes.c_size_t(len(weights)),
            name,
            ctypes.byref(model),
        )
        return status, model

    def port(self, model: ctypes.c_void_p, what: str, index: int) -> tuple[int, Port]:
        port = Port()
        call = getattr(self.c, f"edgewright_{what}_port")
        return call(model, ctypes.c_size_t(index), ctypes.byref(port)), port

    def run(self, model: ctypes.c_void_p, inputs: list[Buffer], outputs: list[Buffer], samples: int) -> int:
        status: int = self.c.edgewright_run(
            model,
            (Buffer * len(inputs))(*inputs),
            ctypes.c_size_t(len(inputs)),
            (Buffer * len(outputs))(*outputs),
            ctypes.c_size_t(len(outputs)),
            ctypes.c_int64(samples),
        )
        return status


def buffer(array: np.ndarray) -> Buffer:
    return Buffer(array.ctypes.data, array.nbytes)


@pytest.fixture(scope="module")
def library() -> Library:
    return Library(built("edgewright"))


@pytest.fixture
def cnn(library: Library) -> Iterator[tuple[ctypes.c_void_p, np.ndarray, np.ndarray]]:
    """A loaded network with an input of 2 samples and its exact output."""
    program = small_cnn(Draw(2))
    plan = program.plan()
    images = Draw(3).inputs(plan, 2)
    expected = reference.run(plan, bytes(program.weights), images)["logits"]
    status, model = library.open_bytes(ir.encode(plan), bytes(program.weights))
    assert status == OK, library.error()
    yield model, images["image"], expected
    library.c.edgewright_close(model)


def test_the_example_classifies_an_exported_artifact_with_the_bits_of_runner(tmp_path: Path) -> None:
    artifact = export(
        saved(mlp(), tmp_path / "mlp.onnx"),
        target="x86-64",
        calibration=normal(64, 8, seed=1),
        out=tmp_path / "mlp.ew",
    )
    x = normal(20, 8, seed=2)
    (tmp_path / "x.f32").write_bytes(x.tobytes())
    program = str(built("classify"))
    scores = Runner(artifact).run({"x": x})["y"]
    for path in cpu_paths():
        done = subprocess.run(
            [program, str(artifact.path), str(tmp_path / "x.f32")],
            env={**os.environ, "EDGEWRIGHT_CPU": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        lines = [line.split() for line in done.stdout.splitlines()]
        assert [int(best) for best, _ in lines] == scores.argmax(axis=1).tolist()
        assert [float.fromhex(score) for _, score in lines] == scores.max(axis=1).tolist()
    done = subprocess.run(
        [program, str(tmp_path), str(tmp_path / "x.f32")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "plan.bin: No such file" in done.stderr


def test_cases_of_every_operator_replay_on_every_path(tmp_path: Path) -> None:
    count = write_cases(tmp_path / "cases", each=4, seed=5)
    command = [str(built("replay")), str(tmp_path / "cases"), *cpu_paths()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{count} cases equal reference.py bit for bit on {', '.join(cpu_paths())}\n"


def test_replay_sees_one_wrong_bit(tmp_path: Path) -> None:
    write_cases(tmp_path / "cases", each=1, seed=5)
    output = tmp_path / "cases" / "network-0" / "output.0.bin"
    values = bytearray(output.read_bytes())
    values[-1] ^= 1
    output.write_bytes(values)
    done = subprocess.run([built("replay"), tmp_path / "cases"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "network-0 on" in done.stderr
    assert "output 0 differs from the reference" in done.stderr


@pytest.mark.parametrize("standard", ["c99", "c++98"])
def test_the_header_is_plain_c(standard: str, tmp_path: Path) -> None:
    source = tmp_path / ("a.c" if standard == "c99" else "a.cpp")
    source.write_text(f'#include "{HEADER}"\nint main(void) {{ return edgewright_error() == 0; }}\n')
    command = ["c++" if standard == "c++98" else "cc", f"-std={standard}", "-Wall", "-Wextra", "-Werror"]
    # long long, that int64_t may be, is younger than C++98
    done = subprocess.run(
        [*command, "-pedantic", "-Wno-long-long", "-fsyntax-only", source],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_library_shows_the_header_alone_and_is_small(library: Library) -> None:
    path = built("edgewright")
    shown = subprocess.run(["nm", "-D", "--defined-only", path], capture_output=True, text=True, check=True)
    names = {line.split()[-1] for line in shown.stdout.splitlines()}
    declared = re.findall(
        r"^EDGEWRIGHT_API [^(]*?(edgewright_\w+)\(", HEADER.read_text("utf-8"), re.MULTILINE
    )
    assert names == set(declared)
    assert path.stat().st_size <= 1_500_000
    needed = subprocess.run(["readelf", "-d", path], capture_output=True, text=True, check=True).stdout
    assert "libstdc++" not in needed
    assert "libpython" not in needed


def test_the_version_is_the_projects(library: Library) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert library.c.edgewright_version().decode() == project["version"]
    assert f'#define EDGEWRIGHT_VERSION "{project["version"]}"' in HEADER.read_text("utf-8")


def test_paths_are_those_of_the_python_module(library: Library) -> None:
    names = [library.c.edgewright_usable_path(ctypes.c_size_t(i)) for i in range(len(cpu_paths()) + 1)]
    assert names == [*[p.encode() for p in cpu_paths()], None]


def test_ports_are_described(library: Library, cnn: tuple[ctypes.c_void_p, np.ndarray, np.ndarray]) -> None:
    model, images, expected = cnn
    assert library.c.edgewright_input_count(model) == library.c.edgewright_output_count(model) == 1
    for what, name, array in (("input", b"image", images), ("output", b"logits", expected)):
        status, port = library.port(model, what, 0)
        assert (status, port.name, port.name_size, port.dtype) == (OK, name, len(name), 0)
        assert tuple(port.shape)[: port.rank] == array.shape[1:]
        assert tuple(port.shape)[port.rank :] == (0,) * (6 - port.rank)
        assert port.sample_bytes == array[0].nbytes
    assert library.c.edgewright_path(model).decode() == cpu_paths()[0]
    assert library.c.edgewright_memory_bytes(model) > 0
    assert library.c.edgewright_packed_bytes(model) > 0


def test_runs_have_the_bits_of_the_reference(
    library: Library, cnn: tuple[ctypes.c_void_p, np.ndarray, np.ndarray]
) -> None:
    model, images, expected = cnn
    found = np.empty_like(expected)
    assert library.run(model, [buffer(images)], [buffer(found)], 2) == OK
    assert found.tobytes() == expected.tobytes()


def test_threads_change_no_bit_and_take_a_scratch_each(
    library: Library, cnn: tuple[ctypes.c_void_p, np.ndarray, np.ndarray]
) -> None:
    model, images, expected = cnn
    sizes = []
    for threads in (1, 2, 3, 64, 1):
        assert library.c.edgewright_set_threads(model, threads) == OK, library.error()
        found = np.empty_like(expected)
        assert library.run(model, [buffer(images)], [buffer(found)], 2) == OK
        assert found.tobytes() == expected.tobytes()
        sizes.append(library.c.edgewright_memory_bytes(model))
    scratch = sizes[1] - sizes[0]
    assert scratch > 0
    assert sizes == [sizes[0] + n * scratch for n in (0, 1, 2, 63, 0)]
    for threads in (0, -1, 65):
        assert library.c.edgewright_set_threads(model, threads) == INVALID
        assert library.error() == f"{threads} threads: 1 to 64 are allowed"
    assert library.c.edgewright_memory_bytes(model) == sizes[0]
    assert library.c.edgewright_set_threads(None, 2) == INVALID
    assert library.error() == "set_threads: a pointer is NULL"


def test_eight_threads_with_batches_of_their_own_get_the_bits_of_the_reference(
    library: Library, cnn: tuple[ctypes.c_void_p, np.ndarray, np.ndarray]
) -> None:
    model, images, expected = cnn
    assert library.c.edgewright_set_threads(model, 2) == OK, library.error()

    def work(samples: int) -> bool:
        given, right = (np.concatenate([array] * 4)[:samples] for array in (images, expected))
        good = True
        for _ in range(50):
            found = np.empty_like(right)
            good &= library.run(model, [buffer(given)], [buffer(found)], samples) == OK
            good &= found.tobytes() == right.tobytes()
        return good

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(1, 9)))


def test_wrong_buffers_are_refused_and_named(
    library: Library, cnn: tuple[ctypes.c_void_p, np.ndarray, np.ndarray]
) -> None:
    model, images, expected = cnn
    x, y = buffer(images), buffer(np.empty_like(expected))
    size = images.nbytes // 2
    wrong: list[tuple[list[Buffer], list[Buffer], int, str]] = [
        ([x], [], 2, "run: 1 inputs and 0 outputs, the model has 1 and 1"),
        ([x, x], [y], 2, "run: 2 inputs and 1 outputs, the model has 1 and 1"),
        ([x], [y], 0, "run: 0 samples, 1 at least is needed"),
        ([x], [y], -1, "run: -1 samples, 1 at least is needed"),
        ([x], [y], 1, f"input 0 'image': {2 * size} bytes, 1 samples of {size} are needed"),
        ([x], [y], 2**62, f"input 0 'image': {2 * size} bytes, {2**62} samples of {size} are needed"),
        ([Buffer(None, x.size_bytes)], [y], 2, "input 0 'image': its data is NULL"),
        ([Buffer(x.data + 1, x.size_bytes)], [y], 2, "input 0 'image': its data is not aligned to 4 bytes"),
        ([x], [Buffer(None, y.size_bytes)], 2, "output 0 'logits': its data is NULL"),
        ([x], [Buffer(y.data, 4)], 2, "output 0 'logits': 4 bytes, 2 samples of 40 are needed"),
        ([x], [Buffer(x.data, y.size_bytes)], 2, "output 0 'logits': overlaps input 0"),
        ([x], [Buffer(x.data + x.size_bytes - 4, y.size_bytes)], 2, "output 0 'logits': overlaps input 0"),
    ]
    for inputs, outputs, samples, message in wrong:
        assert library.run(model, inputs, outputs, samples) == INVALID
        assert library.error() == message
    assert library.c.edgewright_run(None, None, 0, None, 0, ctypes.c_int64(1)) == INVALID
    assert library.error() == "run: a pointer is NULL"


def test_null_and_numbers_beyond_the_ports_are_refused(
    library: Library, cnn: tuple[ctypes.c_void_p, np.ndarray, np.ndarray]
) -> None:
    model = cnn[0]
    assert library.port(model, "input", 1)[0] == INVALID
    assert library.error() == "input 1: the model has 1, counted from 0"
    assert library.port(ctypes.c_void_p(), "output", 0)[0] == INVALID
    assert library.c.edgewright_output_port(model, ctypes.c_size_t(0), None) == INVALID
    assert library.error() == "output: a pointer is NULL"
    assert library.c.edgewright_open(None, None, ctypes.byref(ctypes.c_void_p())) == INVALID
    assert library.c.edgewright_open(b".", None, None) == INVALID
    assert library.c.edgewright_input_count(None) == library.c.edgewright_memory_bytes(None) == 0
    assert library.c.edgewright_packed_bytes(None) == 0
    assert library.c.edgewright_path(None) == b""
    library.c.edgewright_close(None)


def test_what_cannot_be_opened_is_a_status_with_a_sentence(library: Library, tmp_path: Path) -> None:
    program = small_cnn(Draw(2))
    plan, weights = ir.encode(program.plan()), bytes(program.weights)

    def opened(
        name: str, plan_bytes: bytes | None, weight_bytes: bytes | None, path: str | None = None
    ) -> tuple[int, str]:
        folder = tmp_path / name
        folder.mkdir()
        for file, data in (("plan.bin", plan_bytes), ("weights.safetensors", weight_bytes)):
            if data is not None:
                (folder / file).write_bytes(data)
        status, model = library.open(folder, path)
        assert model.value is None
        return status, library.error()

    missing = opened("missing", plan, None)
    assert missing == (IO, f"{tmp_path}/missing/weights.safetensors: No such file or directory")
    assert opened("empty", b"", weights)[0] == DAMAGED
    assert opened("short", plan, weights[:-1])[0] == DAMAGED
    assert "the plan was made for" in library.error()
    assert opened("cut", plan[:-1], weights)[0] == DAMAGED
    newer = plan[:8] + b"\x63" + plan[9:]
    assert opened("newer", newer, weights)[0] == UNSUPPORTED
    assert opened("path", plan, weights, "mmx")[0] == UNSUPPORTED
    assert library.error().startswith("cpu=mmx: this machine has no such path; it has ")
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "plan.bin").symlink_to(tmp_path / "cut" / "plan.bin")
    assert library.open(tmp_path / "link")[0] == IO
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / "plan.bin")
    assert library.open(tmp_path / "pipe")[0] == IO
    assert library.error() == f"{tmp_path}/pipe/plan.bin: not a file"


@pytest.mark.parametrize("first", ["part-0.bin", "part-0.onnx"])
def test_an_artifact_in_parts_is_refused_in_one_sentence(
    library: Library, tmp_path: Path, first: str
) -> None:
    (tmp_path / first).write_bytes(b"")
    assert library.open(tmp_path)[0] == UNSUPPORTED
    assert "some of its operators need ONNX Runtime, which this interface does not use" in library.error()


def test_the_last_error_belongs_to_its_thread(library: Library, tmp_path: Path) -> None:
    assert library.open(tmp_path / "first")[0] == IO
    seen: list[str] = []

    def other() -> None:
        seen.append(library.error())
        library.open(tmp_path / "second")
        seen.append(library.error())

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert seen == ["", f"{tmp_path}/second/plan.bin: No such file or directory"]
    assert "first" in library.error()


def test_a_long_error_is_cut_between_characters(library: Library, tmp_path: Path) -> None:
    for pad in range(3):
        assert library.open(Path("x" * pad + "\u20ac" * 900))[0] == IO
        text = library.error()  # decodes
        assert 1000 < len(text.encode()) < 1024
        assert set(text[pad:]) == {"\u20ac"}


def test_the_library_builds_without_python(tmp_path: Path) -> None:
    """No step of the configuration looks for Python or nanobind."""
    cache = (built("edgewright").parent / "CMakeCache.txt").read_text("utf-8")
    assert not re.search("nanobind|Python", cache)


def test_an_artifact_opens_from_its_directory(library: Library, tmp_path: Path) -> None:
    program = small_cnn(Draw(2))
    (tmp_path / "plan.bin").write_bytes(ir.encode(program.plan()))
    (tmp_path / "weights.safetensors").write_bytes(program.weights)
    for path in cpu_paths():
        status, model = library.open(tmp_path, path)
        assert (status, library.c.edgewright_path(model).decode()) == (OK, path)
        library.c.edgewright_close(model)
