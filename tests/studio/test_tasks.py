"""What a job has trained outlives the rest of it."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import edgewright as ew
from edgewright_studio import tasks
from edgewright_studio.worker import Work
from studio.test_real_job import MODEL, write_data

RECIPE = 'name = "tiny"\n[finetune]\nepochs = 2\nlearning_rate = 0.05\n'


def _run(folder: Path, name: str) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """The result of a job, if it came to its end, and what it said on the way."""
    scratch, events = folder / name, io.BytesIO()
    scratch.mkdir()
    try:
        result = tasks.compress(
            Work(scratch, events),
            model=str(folder / "net.py"),
            entry_point="small",
            teacher="",
            data=str(folder / "data.npz"),
            recipe=RECIPE,
            target="x86-64",
            out=str(folder / "net.ew"),
        )
    except OSError:
        result = None
    return result, [json.loads(line) for line in events.getvalue().splitlines()]


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A job has a process of its own; in this one it leaves no thread and no setting of torch."""
    import torch

    monkeypatch.setattr("tqdm.tqdm.monitor_interval", 0)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_training_outlives_an_export_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "net.py").write_text(MODEL)
    write_data(tmp_path / "data.npz")

    def full(*_: object, **_named: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(ew, "export", full)
        result, said = _run(tmp_path, "first")
    assert result is None
    assert len([each for each in said if each["step"] == "finetune"]) > 2
    assert len(list(tmp_path.glob("net.*.checkpoint"))) == 1
    result, said = _run(tmp_path, "second")
    assert result is not None
    assert len([each for each in said if each["step"] == "finetune"]) == 1
    assert (tmp_path / "net.ew" / "manifest.json").is_file()
    assert not list(tmp_path.glob("net.*.checkpoint"))
