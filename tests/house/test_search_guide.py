"""The guide to a search, run as it is written."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("optuna")
GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "search.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_the_guide_runs_as_written(tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    for kind, text in BLOCK.findall(GUIDE.read_text("utf-8")):
        if kind != "sh":
            (tmp_path / text.split("\n", 1)[0].removeprefix("# ")).write_text(text, "utf-8")
            continue
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text],
            cwd=tmp_path,
            env=os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    found = json.loads((tmp_path / "small.search" / "pareto.json").read_text())
    assert len(found["trials"]) == 20
    assert found["front"]
    assert (found["outcome"] == "held") == (tmp_path / "small.ew").is_dir()
