"""The guide to a first model, run as it is written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "first-model.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LISTENING = re.compile(r"^Listening on http://127\.0\.0\.1:(\d+)")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return os.environ | {"PATH": path, "HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def servers() -> Iterator[list[subprocess.Popen[str]]]:
    running: list[subprocess.Popen[str]] = []
    yield running
    for process in running:
        process.terminate()
        process.communicate()


def test_the_guide_runs_as_written(
    tmp_path: Path, environment: dict[str, str], servers: list[subprocess.Popen[str]]
) -> None:
    set_up, *blocks = BLOCK.findall(GUIDE.read_text("utf-8"))
    assert "export PATH" in set_up[1]  # done by the fixture
    commands: list[str] = []
    port = ""
    for kind, text in blocks:
        if kind != "sh":
            (tmp_path / text.split("\n", 1)[0].removeprefix("# ")).write_text(text, "utf-8")
            continue
        *first, last = text.strip().split("\n")
        serves = last.startswith("edgewright-ota serve")
        script = "\n".join((*commands, *first, *([] if serves else [last])))
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script.replace(":8089", f":{port}")],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        commands = [line for line in (*commands, *first) if line.startswith("export ")]
        if serves:
            command = last.replace("8089", "0").split()
            servers.append(
                subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
            )
            assert servers[-1].stdout is not None
            port = next(found[1] for line in servers[-1].stdout if (found := LISTENING.match(line)))
    assert port
    assert (tmp_path / "answers.npz").is_file()
    assert "confirmed" in done.stdout
