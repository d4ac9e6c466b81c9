"""Side environments: made whole or not at all, once, by one process, and run with JSON in and out."""

from __future__ import annotations

import fcntl
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from edgewright.errors import SideEnvironmentError
from edgewright.progress import Progress
from edgewright.side_environment import (
    STAMP,
    SideEnvironment,
    cost,
    default_folder,
    is_ready,
    python_of,
    run_script,
)

SCRIPT = """
import json, sys
import tiny

request = json.load(sys.stdin)
print("a word of its own")
for done in range(3):
    print("edgewright-progress: " + json.dumps(["count", done + 1, 3]), flush=True)
if request.get("fail"):
    raise SystemExit("it broke")
answer = {"error": "no"} if request.get("refuse") else {"twice": tiny.twice(request["x"])}
open(sys.argv[1], "w").write(json.dumps(answer))
"""


def wheel(folder: Path, code: str = "def twice(x):\n    return 2 * x\n") -> Path:
    """A package of one file, as pip installs it without a network."""
    path = folder / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny.py", code)
        archive.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        archive.writestr(
            "tiny-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr("tiny-1.0.dist-info/RECORD", "")
    return path


class Made:
    """An environment that was made once for all tests here."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.seen = folder / "envs", list[Progress]()
        self.environment = SideEnvironment(
            name="tiny", requirements=(str(wheel(folder)),), imports=("tiny",), size_bytes=1000
        )
        self.python = python_of(self.environment, self.folder, progress=self.seen.append)
        self.script = folder / "script.py"
        self.script.write_text(SCRIPT)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("side"))


def test_it_is_made_with_progress_and_then_used_again(made: Made) -> None:
    steps = dict.fromkeys(p.step for p in made.seen)
    assert next(iter(steps)) == "environment: make"
    assert next(reversed(steps)) == "environment: check"
    assert is_ready(made.environment, made.folder)

    def none(report: Progress) -> None:
        raise AssertionError(f"nothing was left to do, but {report.step}")

    assert python_of(made.environment, made.folder, progress=none) == made.python
    stamp = json.loads((made.python.parent.parent / STAMP).read_text())
    assert stamp == {"requirements": list(made.environment.requirements)}


def test_other_versions_have_another_folder(made: Made) -> None:
    other = replace(made.environment, requirements=("tiny==2.0",))
    assert other.folder_name != made.environment.folder_name
    assert not is_ready(other, made.folder)


def test_a_script_is_given_json_and_answers_in_json(made: Made) -> None:
    seen: list[Progress] = []
    assert run_script(made.python, made.script, {"x": 21}, progress=seen.append) == {"twice": 42}
    assert [(p.step, p.done, p.total) for p in seen] == [("count", n, 3) for n in (1, 2, 3)]


def test_a_script_that_fails_is_told_in_its_own_words(made: Made) -> None:
    with pytest.raises(SideEnvironmentError, match=r"script\.py ended with code 1: .*it broke"):
        run_script(made.python, made.script, {"x": 1, "fail": True})
    with pytest.raises(SideEnvironmentError, match=r"^no$"):
        run_script(made.python, made.script, {"x": 1, "refuse": True})


def test_a_script_can_be_cancelled(made: Made, tmp_path: Path) -> None:
    endless = tmp_path / "endless.py"
    endless.write_text(
        "import time\nprint('edgewright-progress: [\"x\", 0, 1]', flush=True)\ntime.sleep(600)\n"
    )

    def cancel(report: Progress) -> None:
        raise InterruptedError(report.step)

    with pytest.raises(InterruptedError, match="x"):
        run_script(made.python, endless, {}, progress=cancel)


def test_what_cannot_be_installed_leaves_nothing_and_says_what_to_do(tmp_path: Path) -> None:
    wanted = SideEnvironment(name="none", requirements=(str(tmp_path / "none-1.0-py3-none-any.whl"),))
    with pytest.raises(SideEnvironmentError, match=r"cannot be installed.*PIP_FIND_LINKS.*ERROR"):
        python_of(wanted, tmp_path / "envs")
    assert not is_ready(wanted, tmp_path / "envs")
    assert [p.name for p in (tmp_path / "envs").iterdir()] == [f"{wanted.folder_name}.lock"]


def test_what_does_not_load_is_not_used(tmp_path: Path) -> None:
    wanted = SideEnvironment(name="broken", requirements=(str(wheel(tmp_path, "1 / 0")),), imports=("tiny",))
    with pytest.raises(SideEnvironmentError, match=r"does not work .*ZeroDivisionError"):
        python_of(wanted, tmp_path / "envs")
    assert not is_ready(wanted, tmp_path / "envs")


def test_a_cancelled_one_is_removed(made: Made, tmp_path: Path) -> None:
    def cancel(report: Progress) -> None:
        if report.step == "environment: check":
            raise InterruptedError

    with pytest.raises(InterruptedError):
        python_of(made.environment, tmp_path / "envs", progress=cancel)
    assert not (tmp_path / "envs" / made.environment.folder_name).exists()


def test_one_that_was_cut_off_is_made_anew(made: Made, tmp_path: Path) -> None:
    place = tmp_path / "envs" / made.environment.folder_name
    (place / "bin").mkdir(parents=True)
    (place / "bin" / "python").write_text("half of it")
    assert not is_ready(made.environment, tmp_path / "envs")
    python = python_of(made.environment, tmp_path / "envs")
    assert run_script(python, made.script, {"x": 1}) == {"twice": 2}


def test_two_processes_do_not_make_one_at_the_same_time(made: Made) -> None:
    folder, name = made.folder, made.environment.folder_name
    stamp = folder / name / STAMP
    content = stamp.read_text()
    seen: list[Progress] = []
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stamp.unlink()

        def finished(_: float) -> None:  # the other process is done with it
            stamp.write_text(content)
            fcntl.flock(lock, fcntl.LOCK_UN)

        assert python_of(made.environment, folder, progress=seen.append, sleep=finished) == made.python
    assert [p.step for p in seen] == ["environment: another process makes it"]


def test_a_disk_without_room_is_said_before_anything_is_fetched(tmp_path: Path) -> None:
    vast = SideEnvironment(name="vast", requirements=("x==1",), size_bytes=1 << 60, minutes=4)
    with pytest.raises(SideEnvironmentError, match="GB are free, vast needs"):
        python_of(vast, tmp_path / "envs")
    assert cost(replace(vast, size_bytes=2_100_000_000)) == "2.1 GB of disk, and some 4 minutes, once"


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SideEnvironmentError, match="choose another folder"):
        python_of(SideEnvironment(name="x", requirements=("x==1",)), tmp_path / "file" / "envs")


def test_the_usual_place_is_the_cache_of_the_user() -> None:
    assert default_folder() == Path.home() / ".cache" / "edgewright" / "envs"
