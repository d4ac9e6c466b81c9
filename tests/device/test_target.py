"""Targets: known by name or file, and every mistake in one is named."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from edgewright_device import BACKENDS, Target, TargetError, detect, target, target_names
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
    assert {"x86-64", "x86-avx2", "rpi4", "rpi5"} <= set(target_names())


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
    assert here.status == "run"
    assert set(here.instruction_sets) <= set(cpu_paths())
    assert here.name == ("x86-avx2" if "avx2" in cpu_paths() else "x86-64")


def test_without_simd_the_base_target_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target, "cpu_paths", lambda: ("scalar",))
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert detect().name == "x86-64"


def test_a_machine_that_nothing_describes_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(TargetError, match=r"no target fits this machine \(riscv64\); describe it in a TOML"):
        detect()
