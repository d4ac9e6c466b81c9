"""Programs as processes: what they say is heard, and none of them outlives its block."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgewright import process
from edgewright.errors import DemoError
from edgewright.process import Program

TIMEOUT_S = 60.0

Start = Callable[..., Program]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Starts a Python script as a command on PATH."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    def run(code: str, *arguments: str) -> Program:
        script = tmp_path / "speaker"
        script.write_text(f"#!{sys.executable}\nimport json, signal, sys\n{code}\n")
        script.chmod(0o755)
        return Program("speaker", arguments, log=tmp_path / "log")

    return run


WAITING = "signal.pause()"


def anything(line: dict[str, Any]) -> bool:
    return True


def nothing(line: dict[str, Any]) -> bool:
    return False


def say(text: str) -> str:
    return f"print({text!r}, flush=True)"


def test_the_first_line_that_fits_is_given_and_others_are_passed_over(start: Start) -> None:
    code = "\n".join([say('{"n": 1}'), say("not json"), say('{"n": 2}'), say('{"n": 3}'), WAITING])
    with start(code) as program:
        assert program.wait_for(lambda line: line.get("n", 0) > 1, timeout_s=TIMEOUT_S) == {"n": 2}
        assert program.wait_for(anything, timeout_s=TIMEOUT_S) == {"n": 3}


def test_a_line_that_is_not_json_is_kept_as_text(start: Start) -> None:
    with start("\n".join([say("[half"), WAITING])) as program:
        line = program.wait_for(anything, timeout_s=TIMEOUT_S)
    assert line == {"event": "not JSON", "text": "[half"}


def test_the_command_is_asked_for_json_after_its_own_arguments(start: Start) -> None:
    with start('print(json.dumps({"arguments": sys.argv[1:]}))', "--state", "x y") as program:
        line = program.wait_for(anything, timeout_s=TIMEOUT_S)
    assert line["arguments"] == ["--state", "x y", "--json", "-"]


def test_an_early_end_is_told_with_the_last_words_each_time(start: Start) -> None:
    with start("\n".join([say('{"n": 1}'), 'sys.exit("error: the disk is full")'])) as program:
        for _ in range(2):
            with pytest.raises(DemoError, match="speaker ended early: error: the disk is full"):
                program.wait_for(nothing, timeout_s=TIMEOUT_S)


def test_an_early_end_without_a_word_is_told_too(start: Start) -> None:
    with start("") as program, pytest.raises(DemoError, match="speaker ended early: no word why"):
        program.wait_for(anything, timeout_s=TIMEOUT_S)


def test_a_wait_ends_in_time_and_tells_what_was_said_last(start: Start) -> None:
    times = iter([0.0, 0.0, TIMEOUT_S + 1])
    with (
        start("\n".join([say('{"n": 7}'), WAITING])) as program,
        pytest.raises(DemoError, match=r"within 60 s; the last it said: \{'n': 7\}"),
    ):
        program.wait_for(nothing, timeout_s=TIMEOUT_S, clock=lambda: next(times))


def test_leaving_ends_the_process_even_on_an_error(start: Start) -> None:
    program = start("\n".join([say("{}"), WAITING]))
    program.wait_for(anything, timeout_s=TIMEOUT_S)
    with pytest.raises(ZeroDivisionError), program:
        raise ZeroDivisionError
    assert program._process.returncode == -signal.SIGTERM
    assert not program._reader.is_alive()


def test_a_process_that_will_not_end_is_killed(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "STOP_TIMEOUT_S", 0.05)
    deaf = ["signal.signal(signal.SIGTERM, signal.SIG_IGN)", say("{}"), "while True: signal.pause()"]
    with start("\n".join(deaf)) as program:
        program.wait_for(anything, timeout_s=TIMEOUT_S)
    assert program._process.returncode == -signal.SIGKILL


def test_a_command_that_is_not_installed_is_named(tmp_path: Path) -> None:
    with pytest.raises(DemoError, match=r"no-such-command: not found beside .* or on PATH; install"):
        Program("no-such-command", [], log=tmp_path / "log")


def test_the_command_of_this_python_comes_before_the_one_on_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("here", "path"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "tool").write_text("#!/bin/sh\n" + f'echo \'{{"from": "{folder}"}}\'\n')
        (tmp_path / folder / "tool").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "path"), prepend=os.pathsep)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "here" / "python"))
    with Program("tool", [], log=tmp_path / "log") as program:
        assert program.wait_for(anything, timeout_s=TIMEOUT_S) == {"from": "here"}
