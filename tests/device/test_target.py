"""Targets: known by name or file, and every mistake in one is named."""

from __future__ import annotations

import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgewright_device import BACKENDS, Target, TargetError, detect, detection, target_names
from edgewright_kernels import cpu_paths

GOOD = """
name = "board"
title = "A board"
arch = "aarch64"
instruction_sets = ["neon"]
memory_bytes = 1048576
backends = ["native"]
strategy = "INT8"
status = "tested"
"""


@pytest.mark.parametrize("name", target_names())
def test_every_target_that_comes_along_loads_under_its_name(name: str) -> None:
    loaded = Target.load(name)
    assert loaded.name == name
    assert set(loaded.backends) <= set(BACKENDS)
    assert loaded.memory_bytes > 0


def test_the_names_are_sorted_and_hold_the_usual() -> None:
    assert list(target_names()) == sorted(target_names())
    assert set(target_names()) >= {
        *("x86-64", "x86-avx2", "x86-avx512-vnni", "openvino-cpu", "openvino-npu", "generic-arm64"),
        *("rpi4", "rpi5", "rk3588", "android-arm64", "jetson-orin", "jetson-agx", "qnn-htp", "ascend-310"),
        *("t4", "a100", "h100", "amd-migraphx"),
    }


@pytest.mark.parametrize("as_text", [True, False])
def test_a_toml_file_is_a_target(tmp_path: Path, as_text: bool) -> None:
    file = tmp_path / "board.toml"
    file.write_text(GOOD)
    assert Target.load(str(file) if as_text else file) == Target(
        name="board",
        title="A board",
        arch="aarch64",
        instruction_sets=("neon",),
        memory_bytes=1 << 20,
        backends=("native",),
        strategy="INT8",
        status="tested",
    )


@pytest.mark.parametrize(
    ("typed", "meant"), [("x86-avx", "x86-avx2"), ("rpi-5", "rpi5"), ("X86-64", "x86-64")]
)
def test_a_typo_suggests_the_nearest_name(typed: str, meant: str) -> None:
    with pytest.raises(TargetError, match=rf"target '{typed}' is not known; did you mean '{meant}'\?"):
        Target.load(typed)


@pytest.mark.parametrize("typed", ["toaster", "", ".", "../x86-64", "x86-64/"])
def test_what_resembles_nothing_lists_what_there_is(typed: str) -> None:
    with pytest.raises(TargetError, match=r"is not known; (known: .*x86-avx2|did you mean)"):
        Target.load(typed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("name =", "nam ="), r"unknown key 'nam'; did you mean 'name'\?"),
        (("title =", "zzz ="), "unknown key 'zzz'; known: name, title"),
        (('strategy = "INT8"', ""), "'strategy' is missing"),
        (('"A board"', "3"), "title must be text, not 3"),
        (('"A board"', '""'), "title must be text, not ''"),
        (('"board"', '"a board"'), "name 'a board': 1 to 64"),
        (('["neon"]', '"neon"'), "instruction_sets must be a list of names, not 'neon'"),
        (('["neon"]', "[1]"), r"instruction_sets must be a list of names, not \[1\]"),
        (('["native"]', '["nativ"]'), "no backend 'nativ'; choose from native, onnxruntime"),
        (('["native"]', "[]"), "one backend at least is needed"),
        (("1048576", "0"), "memory_bytes must be a positive whole number, not 0"),
        (("1048576", "-1"), "memory_bytes must be a positive"),
        (("1048576", "1.5"), "memory_bytes must be a positive"),
        (("1048576", "true"), "memory_bytes must be a positive whole number, not True"),
        (("1048576", '"1 MB"'), "memory_bytes must be a positive"),
        (('"tested"', '"perfect"'), "status must be one of run, tested, documented, not 'perfect'"),
        (('"tested"', '"tested'), "not TOML"),
    ],
)
def test_a_mistake_in_a_file_is_named_with_the_file(
    tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    file = tmp_path / "board.toml"
    assert change[0] in GOOD
    file.write_text(GOOD.replace(*change))
    with pytest.raises(TargetError, match=rf"board\.toml: {message}"):
        Target.load(file)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"none\.toml: cannot be read \(No such file"):
        Target.load(tmp_path / "none.toml")
    (tmp_path / "dir.toml").mkdir()
    with pytest.raises(TargetError, match=r"dir\.toml: cannot be read"):
        Target.load(tmp_path / "dir.toml")
    (tmp_path / "bin.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(TargetError, match=r"bin\.toml: not a text file"):
        Target.load(tmp_path / "bin.toml")


def test_this_machine_is_found_and_really_has_what_it_says() -> None:
    here = detect()
    assert here.arch == platform.machine()
    assert set(here.instruction_sets) <= set(cpu_paths())
    if platform.machine() == "x86_64" and here.found_by == "cpu":
        best = "x86-avx512-vnni" if "avx512vnni" in cpu_paths() else "x86-avx2"
        assert here.name == (best if "avx2" in cpu_paths() else "x86-64")
        assert here.status == "run"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Path]:
    """Makes detection see another machine: its architecture and kernel paths; gives the root of its files."""

    def see(arch: str, *paths: str, files: dict[str, str] | None = None) -> Path:
        monkeypatch.setattr(platform, "machine", lambda: arch)
        monkeypatch.setattr(detection, "cpu_paths", lambda: (*paths, "scalar"))
        for name, text in (files or {}).items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(text.encode())
        return tmp_path

    return see


Machine = Callable[..., Path]
TREE = "proc/device-tree/model"
GPU = "proc/driver/nvidia/gpus/0000:3b:00.0/information"


@pytest.mark.parametrize(
    ("arch", "paths", "files", "found"),
    [
        ("x86_64", (), {}, "x86-64"),
        ("x86_64", ("avx2",), {}, "x86-avx2"),
        ("x86_64", ("avxvnni", "avx2"), {}, "x86-avx2"),
        ("x86_64", ("avx512vnni", "avx2"), {}, "x86-avx512-vnni"),
        ("aarch64", ("neon",), {}, "generic-arm64"),
        ("aarch64", ("dotprod", "neon"), {}, "generic-arm64"),
        ("aarch64", ("neon",), {TREE: "Raspberry Pi 4 Model B Rev 1.4\0"}, "rpi4"),
        ("aarch64", ("dotprod", "neon"), {TREE: "Raspberry Pi 5 Model B Rev 1.0\0"}, "rpi5"),
        ("aarch64", ("neon",), {TREE: "Raspberry Pi 5 Model B Rev 1.0\0"}, "generic-arm64"),
        ("aarch64", ("neon",), {TREE: "Raspberry Pi 3 Model B\0"}, "generic-arm64"),
        ("aarch64", ("dotprod",), {TREE: "NVIDIA Orin NX Developer Kit\0"}, "jetson-orin"),
        ("aarch64", ("dotprod",), {TREE: "NVIDIA Jetson Orin Nano Developer Kit\0"}, "jetson-orin"),
        ("aarch64", ("dotprod",), {TREE: "NVIDIA Jetson AGX Orin Developer Kit\0"}, "jetson-agx"),
        ("aarch64", ("neon",), {TREE: "NVIDIA Jetson AGX Xavier\0"}, "generic-arm64"),
        (
            "aarch64",
            ("dotprod",),
            {TREE: "A board\0", "proc/device-tree/compatible": "maker,board\0rockchip,rk3588\0"},
            "rk3588",
        ),
        ("x86_64", ("avx2",), {GPU: "Model: \t\t Tesla T4\nIRQ:   82\n"}, "t4"),
        ("x86_64", ("avx512vnni", "avx2"), {GPU: "Model:  NVIDIA A100-SXM4-40GB\n"}, "a100"),
        ("x86_64", ("avx2",), {GPU: "Model:  NVIDIA H100 80GB HBM3\n"}, "h100"),
        ("x86_64", ("avx2",), {GPU: "Model:  NVIDIA T400\n"}, "x86-avx2"),
        ("x86_64", ("avx2",), {GPU: "Model:  NVIDIA GeForce RTX 3090\n"}, "x86-avx2"),
        ("x86_64", (), {GPU: "Model:  Tesla T4\n"}, "x86-64"),
        ("x86_64", ("avx2",), {TREE: "Raspberry Pi 4 Model B\0"}, "x86-avx2"),
        ("x86_64", ("avx2",), {TREE: "\0" * 9000}, "x86-avx2"),
    ],
)
def test_a_machine_is_found_by_its_board_its_gpu_or_its_cpu(
    machine: Machine, arch: str, paths: tuple[str, ...], files: dict[str, str], found: str
) -> None:
    assert detect(machine(arch, *paths, files=files)).name == found


def test_files_that_cannot_be_read_find_nothing(machine: Machine) -> None:
    root = machine("x86_64", "avx2")
    (root / TREE).mkdir(parents=True)
    (root / GPU).parent.mkdir(parents=True)
    (root / GPU).write_bytes(b"\xff\xfe Model: Tesla T4")
    assert detect(root).name == "x86-avx2"


def test_detection_starts_no_program_and_takes_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a program is started")

    monkeypatch.setattr(subprocess, "Popen", forbidden)
    detect()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        detect()
        times.append(time.perf_counter() - start)
    assert min(times) < 0.05


def test_a_machine_that_nothing_describes_says_what_to_do(machine: Machine) -> None:
    with pytest.raises(TargetError, match=r"no target fits this machine \(riscv64\); describe it in a TOML"):
        detect(machine("riscv64"))


def test_what_can_be_found_says_by_what() -> None:
    for known in map(Target.load, target_names()):
        assert bool(known.found_as) == (known.found_by in {"board", "gpu"}), known.name


@pytest.mark.parametrize("name", target_names())
def test_every_status_says_what_it_rests_on(name: str) -> None:
    known = Target.load(name)
    assert bool(known.evidence) == (known.status != "documented")
    assert known.sources or known.status == "run"
    for source in known.sources:
        fact, _, address = source.rpartition(": ")
        assert fact, source
        assert address.startswith("https://"), source


def test_new_keys_may_be_left_out_and_are_checked(tmp_path: Path) -> None:
    file = tmp_path / "board.toml"
    file.write_text(GOOD.replace('"native"', '"native", "onnxruntime"'))
    old = Target.load(file)
    assert (old.kind, old.providers, old.found_by) == ("edge", ("CPUExecutionProvider",), "")
    assert [str(c) for c in old.choices()] == ["CPU"]
    file.write_text(GOOD + 'providers = ["QNN", "cpu"]\nkind = "cloud"\n')
    assert Target.load(file).kind == "cloud"
    assert Target.load(file).choices() == ()  # there is no ONNX Runtime on it
    for text, message in (
        ('providers = ["QNM"]', r"provider 'QNM' is not known; did you mean 'QNN'\?"),
        ('providers = ["OpenVINO:TPU"]', "provider 'OpenVINO' has no device 'TPU'; it has CPU, GPU, NPU"),
        ('providers = "QNN"', "providers must be a list of names, not 'QNN'"),
        ('kind = "fog"', "kind must be one of edge, cloud, training, not 'fog'"),
        ('found_by = "smell"', 'found_by must be one of "", cpu, board, gpu, not'),
        ('provider = ["QNN"]', r"unknown key 'provider'; did you mean 'providers'\?"),
        ("sources = [3]", r"sources must be a list of names, not \[3\]"),
    ):
        file.write_text(GOOD + text)
        with pytest.raises(TargetError, match=rf"board\.toml: {message}"):
            Target.load(file)


def test_only_where_nothing_else_runs_must_every_size_be_fixed() -> None:
    assert {n for n in target_names() if Target.load(n).fixed_shapes} == {"qnn-htp", "openvino-npu"}
