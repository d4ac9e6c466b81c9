"""What the commands share: where JSON and human output go, and the exit code of each kind of error."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from rich.console import Console

from edgewright.console import console_for, emit, progress_bar, run
from edgewright.errors import CompressError, DemoError
from edgewright.progress import Progress
from edgewright_device import ArtifactError
from edgewright_ota import OtaError


def test_json_goes_to_stdout_or_a_file_and_people_read_the_other_stream(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = {"name": "é", "values": [1, 2.5]}
    path = tmp_path / "some" / "where" / "out.json"
    for json_to in (None, "-", str(path)):
        console_for(json_to).print("for people")
        emit(json_to, data)
        out, err = capsys.readouterr()
        if json_to == "-":
            assert json.loads(out) == data
            assert err == "for people\n"
        else:
            assert (out, err) == ("for people\n", "")
    assert json.loads(path.read_text("utf-8")) == data


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (CompressError("m.py: cannot be run"), 2, "error: m.py: cannot be run"),
        (ArtifactError("two\n  lines"), 2, "error: two lines"),
        (OtaError("no key"), 2, "error: no key"),
        (FileNotFoundError(2, "No such file", "a.npz"), 2, "error: [Errno 2] No such file: 'a.npz'"),
        (DemoError("no update\ncame"), 1, "the demo stopped: no update came"),
    ],
)
def test_what_the_world_got_wrong_is_one_line_and_an_exit_code(
    error: Exception, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        run(command)
    assert ended.value.code == code
    assert capsys.readouterr() == ("", f"{line}\n")


def test_a_fault_of_our_own_is_not_hidden() -> None:
    def command() -> None:
        raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug"):
        run(command)


@pytest.mark.parametrize("code", [0, 1, 2])
def test_a_commands_own_exit_code_is_kept_without_a_word(
    code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(lambda: sys.exit(code))
    assert ended.value.code == code
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_shown_on_a_terminal_alone(terminal: bool) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=120, _environ={})
    with progress_bar(console) as show:
        show(Progress(step="calibrate", done=3, total=10, metrics={"loss": 0.123456}))
    if terminal:
        for word in ("calibrate", "3/10", "loss 0.1235"):
            assert word in out.getvalue()
    else:
        assert out.getvalue().strip() == ""
