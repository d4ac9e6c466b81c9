from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edgewright_studio.errors import TaskError
from edgewright_studio.jobs import (
    Cancelled,
    End,
    Event,
    Failed,
    Finished,
    Job,
    Logged,
    Progressed,
    Started,
    Task,
)
from studio.waiting import gone, until


def task(name: str, tmp_path: Path, **arguments: object) -> Task:
    return Task(
        title="Try", function=f"studio.fake_tasks:{name}", arguments=arguments, scratch_in=str(tmp_path)
    )


def run(job: Job) -> list[Event]:
    """All events to the end."""
    events: list[Event] = []

    def ended() -> bool:
        events.extend(job.poll())
        return job.end is not None

    try:
        until(ended)
    finally:
        job.close()
    return events


def hanging(name: str, tmp_path: Path) -> tuple[Job, list[int], Path]:
    """A job that hangs, the processes of it, and its scratch directory."""
    marker = tmp_path / "marker"
    job = Job(task(name, tmp_path, marker=str(marker)))
    try:
        until(marker.exists)
    except AssertionError:
        job.close()
        raise
    *pids, scratch = marker.read_text().split(" ", 2)
    return job, [int(p) for p in pids], Path(scratch)


def test_events_come_in_order_and_the_result_last(tmp_path: Path) -> None:
    out = tmp_path / "out.ew"
    events = run(Job(task("compress", tmp_path, out=str(out))))
    assert isinstance(events[0], Started)
    assert isinstance(events[-1], Finished)
    assert sum(isinstance(e, End) for e in events) == 1
    overall = [e.overall for e in events if isinstance(e, Progressed)]
    assert overall == sorted(overall)
    assert overall[-1] == 1.0
    assert out.is_dir()
    assert [p.name for p in tmp_path.iterdir()] == ["out.ew"]


def test_progress_is_coalesced_and_nothing_of_the_log_is_lost(tmp_path: Path) -> None:
    events = run(Job(task("chatter", tmp_path, count=20_000)))
    progressed = [e for e in events if isinstance(e, Progressed)]
    assert len(progressed) < 2_000
    assert progressed[-1].done == 20_000
    lines = [line for e in events if isinstance(e, Logged) for line in e.lines]
    assert lines[0].endswith("s  talk")
    assert lines[1:] == [f"line {i}" for i in range(0, 20_000, 10)]


def test_a_task_that_knows_why_it_fails_says_so(tmp_path: Path) -> None:
    end = run(Job(task("refuse", tmp_path)))[-1]
    assert isinstance(end, Failed)
    assert (end.problem.what, end.problem.why) == ("Cannot train", "the data is empty")
    assert end.problem.next_step == "Give it samples."
    assert list(tmp_path.iterdir()) == []


def test_a_crash_gives_its_traceback_and_its_log(tmp_path: Path) -> None:
    events = run(Job(task("crash", tmp_path)))
    end = events[-1]
    assert isinstance(end, Failed)
    assert "ZeroDivisionError" in end.problem.details
    assert any(isinstance(e, Logged) and "about to divide" in e.lines for e in events)


def test_a_killed_process_is_a_failure_with_its_last_words(tmp_path: Path) -> None:
    end = run(Job(task("die", tmp_path)))[-1]
    assert isinstance(end, Failed)
    assert "signal 9" in end.problem.why
    assert "last words" in end.problem.details
    assert list(tmp_path.iterdir()) == []


def test_a_process_killed_in_the_middle_of_an_event_is_a_plain_failure(tmp_path: Path) -> None:
    end = run(Job(task("break_off", tmp_path)))[-1]
    assert isinstance(end, Failed)
    assert "signal 9" in end.problem.why


def test_cancel_ends_every_process_and_removes_partial_output(tmp_path: Path) -> None:
    job, pids, scratch = hanging("hang", tmp_path)
    assert (scratch / "partial").exists()
    job.cancel()
    assert job.cancelling
    events = run(job)
    assert isinstance(events[-1], Cancelled)
    until(lambda: all(gone(pid) for pid in pids))
    assert not scratch.exists()


def test_a_child_that_ignores_the_request_is_killed(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    now_s = 0.0
    job = Job(task("stubborn", tmp_path, marker=str(marker)), clock=lambda: now_s)
    try:
        until(marker.exists)
        job.cancel()
        job.poll()
        assert job.end is None
        now_s = 3.0
        assert isinstance(run(job)[-1], Cancelled)
    finally:
        job.close()


def test_close_kills_waits_and_cleans_up(tmp_path: Path) -> None:
    job, pids, scratch = hanging("hang", tmp_path)
    job.close()
    assert isinstance(job.end, Cancelled)
    until(lambda: all(gone(pid) for pid in pids))
    assert not scratch.exists()
    assert job.poll() == ()


def test_a_job_dies_with_the_studio_and_leaves_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    program = (
        "import sys, threading; from edgewright_studio.jobs import Job, Task\n"
        "marker, folder = sys.argv[1:]\n"
        "job = Job(Task(title='t', function='studio.fake_tasks:hang', arguments={'marker': marker},"
        " scratch_in=folder))\n"
        "threading.Event().wait()\n"
    )
    studio = subprocess.Popen([sys.executable, "-c", program, str(marker), str(tmp_path)])
    try:
        until(marker.exists)
    finally:
        studio.send_signal(signal.SIGKILL)
        studio.wait()
    *pids, scratch = marker.read_text().split(" ", 2)
    until(lambda: all(gone(int(pid)) for pid in pids) and not Path(scratch).exists())


def test_time_to_go_follows_the_overall_progress(tmp_path: Path) -> None:
    now_s = 10.0
    job = Job(task("compress", tmp_path, out=str(tmp_path / "o.ew")), clock=lambda: now_s)
    try:
        assert job.remaining_s is None
        until(lambda: any(isinstance(e, Progressed) for e in job.poll()) or job.end is not None)
        assert job.progress is not None
        job.progress = Progressed(step="train", done=1, total=4, overall=0.25, metrics={})
        now_s = 40.0
        assert job.remaining_s == pytest.approx(90.0)
    finally:
        job.close()


def test_a_job_that_cannot_start_says_why(tmp_path: Path) -> None:
    files = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(TaskError, match="No such file or directory"):
        Job(Task(title="Try", function="x:y", scratch_in=str(tmp_path / "absent")))
    assert len(list(Path("/proc/self/fd").iterdir())) == files
