"""`edgewright-agent` as a person and as a real server meet it."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from device.tiny import samples, tiny_artifact, tiny_in_parts
from edgewright_device import Artifact, Runner, cli, journal
from edgewright_device.journal import SlotRelease
from edgewright_device.slots import Slots
from edgewright_ota import Fleet, Repository

AGENT = Path(sys.executable).with_name("edgewright-agent")
SERVER = Path(sys.executable).with_name("edgewright-ota")

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs the program in this process; gives exit code, output and error output."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["edgewright-agent", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


def install(state: Path, version: str, *, seed: int = 0) -> None:
    def fill(folder: Path) -> None:
        tiny_artifact(folder, seed=seed)

    with Slots(state / "slots") as slots:
        release = SlotRelease(name="tiny", version=version, digest="0" * 64)
        slots.install(fill, release, size_bytes=10_000)
        slots.begin_trial()
        slots.count_attempt()
        slots.confirm()


def test_status_shows_both_slots_and_the_last_failure(tmp_path: Path, call: Call) -> None:
    install(tmp_path, "1.0.0")
    install(tmp_path, "1.1.0")
    code, out, _ = call("status", "--state", tmp_path)
    assert code == 0
    assert "tiny 1.1.0" in out
    assert "previous" in out
    call("rollback", "--state", tmp_path, "--reason", "false alarms at night")
    assert "last failure: 1.1.0" in call("status", "--state", tmp_path)[1]
    told = json.loads(call("status", "--state", tmp_path, "--json", "-")[1])
    assert told["current"] == "a"
    assert told["failure"]["reason"] == "false alarms at night"


def test_rollback_goes_back_once_and_then_says_that_there_is_nothing(tmp_path: Path, call: Call) -> None:
    install(tmp_path, "1.0.0")
    install(tmp_path, "1.1.0")
    report = tmp_path / "report.json"
    code, out, _ = call("rollback", "--state", tmp_path, "--json", report)
    assert (code, out) == (0, "in use: tiny 1.0.0\n")
    assert json.loads(report.read_text()) == {"from": "1.1.0", "to": "1.0.0"}
    code, out, err = call("rollback", "--state", tmp_path)
    assert (code, out) == (2, "")
    assert err.endswith("there is no previous release to go back to\n")
    assert err.count("\n") == 1


def test_rollback_while_an_agent_runs_is_refused(tmp_path: Path, call: Call) -> None:
    install(tmp_path, "1.0.0")
    with Slots(tmp_path / "slots"):
        code, _, err = call("rollback", "--state", tmp_path)
        assert code == 2
        assert "in use by another process" in err
        assert call("status", "--state", tmp_path)[0] == 0


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_infer_runs_the_release_in_use_or_an_artifact(tmp_path: Path, call: Call, kind: str) -> None:
    install(tmp_path / "state", "1.0.0", seed=4)
    artifact = tiny_artifact(tmp_path / "tiny.ew", seed=4)
    x = samples(3)
    source, target = tmp_path / f"in.{kind}", tmp_path / f"out.{kind}"
    if kind == "npz":
        np.savez(source, x=x)
    else:
        source.write_bytes(safetensors.numpy.save({"x": x}))
    for place in (("--state", tmp_path / "state"), ("--artifact", artifact.path)):
        target.unlink(missing_ok=True)
        code, out, err = call("infer", source, target, *place)
        assert (code, err) == (0, "")
        assert "'y': [3, 5]" in out
        y = np.load(target)["y"] if kind == "npz" else safetensors.numpy.load_file(target)["y"]
        np.testing.assert_array_equal(y, Runner(artifact).run({"x": x})["y"])


def test_infer_says_which_provider_ran_and_refuses_wrong_ones(tmp_path: Path, call: Call) -> None:
    artifact = tiny_artifact(tmp_path / "m.ew")
    source, target = tmp_path / "x.npz", tmp_path / "y.npz"
    np.savez(source, x=samples(2))
    command = ("infer", source, target, "--artifact", artifact.path)
    on = ("--backend", "onnxruntime", "--provider")
    code, out, err = call(*command, *on, "CANN", "--provider", "cpu")
    assert (code, err) == (0, "")
    assert "provider: CPU; not CANN: not installed: pip install onnxruntime-cann" in out
    told = json.loads(call(*command, *on, "CPU", "--json", "-")[1])
    assert (told["backend"], told["provider"]) == ("onnxruntime", "CPU")
    assert json.loads(call(*command, "--json", "-")[1])["provider"] is None
    for more, message in (
        (("--provider", "CPU"), "is for --backend onnxruntime"),
        ((*on, "QNM"), "did you mean 'QNN'"),
        ((*on, "CANN"), "pip install onnxruntime-cann"),
    ):
        code, _, err = call(*command, *more)
        assert (code, message in " ".join(err.split())) == (2, True), err


def test_infer_takes_a_lone_input_by_any_name(tmp_path: Path, call: Call) -> None:
    artifact = tiny_artifact(tmp_path / "tiny.ew")
    source, target = tmp_path / "in.npz", tmp_path / "out.npz"
    np.savez(source, anything=samples(3))
    assert call("infer", source, target, "--artifact", artifact.path)[0] == 0
    np.testing.assert_array_equal(np.load(target)["y"], Runner(artifact).run({"x": samples(3)})["y"])
    target.unlink()
    np.savez(source, x=samples(3), more=samples(3))
    code, _, err = call("infer", source, target, "--artifact", artifact.path)
    assert code == 2
    assert "['more', 'x']" in err or "['x', 'more']" in err
    assert not target.exists()


def test_infer_with_bad_input_exits_2_and_writes_nothing(tmp_path: Path, call: Call) -> None:
    artifact = tiny_artifact(tmp_path / "tiny.ew").path
    source, target = tmp_path / "in.npz", tmp_path / "out.npz"
    np.savez(source, x=samples(3)[:, :4])
    code, _, err = call("infer", source, target, "--artifact", artifact)
    assert code == 2
    assert "(3, 4)" in err
    source.write_bytes(b"not a zip")
    assert call("infer", source, target, "--artifact", artifact)[0] == 2
    np.savez(source, x=np.array([{"a": 1}], dtype=object))
    assert call("infer", source, target, "--artifact", artifact)[0] == 2
    assert call("infer", tmp_path / "none.npz", target, "--artifact", artifact)[0] == 2
    assert call("infer", source, tmp_path / "out.txt", "--artifact", artifact)[0] == 2
    assert call("infer", source, target)[0] == 2
    assert call("infer", source, target, "--artifact", tmp_path / "none.ew")[0] == 2
    assert call("infer", source, target, "--state", tmp_path / "none")[0] == 2
    assert not target.exists()


def test_plan_prints_every_operator(tmp_path: Path, call: Call) -> None:
    artifact = tiny_artifact(tmp_path / "tiny.ew")
    code, out, _ = call("plan", artifact.path)
    assert code == 0
    for word in ("Quantize", "FullyConnected", "Dequantize", "80 bytes of 8-bit weights", "3 operators"):
        assert word in out
    code, out, _ = call("plan", artifact.path / "plan.bin", "--json", "-")
    assert [op["op"] for op in json.loads(out)["ops"]] == ["Quantize", "FullyConnected", "Dequantize"]


def test_plan_prints_every_part(tmp_path: Path, call: Call) -> None:
    artifact = tiny_in_parts(tmp_path / "tiny.ew")
    code, out, _ = call("plan", artifact.path)
    assert code == 0
    assert "FullyConnected" in out
    assert "part-1.onnx: ONNX Runtime, CumSum: reads m, gives y" in out
    code, out, _ = call("plan", artifact.path, "--json", "-")
    data = json.loads(out)
    assert [op["op"] for op in data["part-0.bin"]["ops"]] == ["Quantize", "FullyConnected", "Dequantize"]
    assert data["part-1.onnx"]["operators"] == ["CumSum"]


def test_a_damaged_plan_is_one_line_and_exit_2(tmp_path: Path, call: Call) -> None:
    file = tmp_path / "plan.bin"
    file.write_bytes(b"nonsense")
    code, out, err = call("plan", file)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "not a plan" in err
    assert call("plan", tmp_path / "none.bin")[0] == 2


def test_cpu_names_the_paths_of_this_machine(call: Call) -> None:
    code, out, _ = call("cpu", "--json", "-")
    assert code == 0
    assert "scalar" in json.loads(out)["paths"]
    assert call("cpu")[1].split() == json.loads(out)["paths"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--server": "ftp://example.org"}, "give an address"),
        ({"--listen": "8080"}, "give HOST:PORT"),
        ({"--listen": "0.0.0.0:0"}, "not an IPv4 loopback address"),
        ({"--token-file": "none"}, "there is no such file"),
        ({"--root": "none"}, "there is no such file"),
        ({"--backend": "magic"}, "magic"),
        ({"--interval": "0"}, "interval"),
        ({}, "no trusted root"),
    ],
)
def test_bad_use_of_run_is_exit_2_and_says_what(
    tmp_path: Path, call: Call, change: dict[str, str], message: str
) -> None:
    token = tmp_path / "token"
    token.write_text("secret\n")
    options = {
        "--state": str(tmp_path / "state"),
        "--server": "http://127.0.0.1:9",
        "--device": "d",
        "--token-file": str(token),
    }
    code, _, err = call("run", *(part for pair in {**options, **change}.items() for part in pair))
    assert code == 2
    assert message in " ".join(err.replace("│", " ").split())


# From here on: a real repository, a real server process and real agent processes.


@dataclass
class World:
    """A served repository, and a device of its own for each test."""

    folder: Path
    url: str
    fleet: Fleet
    repository: Repository

    def offer(self, device: str, version: str) -> None:
        self.fleet.start_rollout("tiny", version, devices=[device])

    def command(self, device: str, *more: str) -> list[str]:
        home = self.folder / device
        if not home.exists():
            home.mkdir()
            (home / "token").write_text(self.fleet.add_device(device))
            (home / "root.json").write_bytes(self.repository.root_bytes)
        return [
            "run",
            *("--state", str(home / "state")),
            *("--server", self.url),
            *("--device", device),
            *("--token-file", str(home / "token")),
            *("--root", str(home / "root.json")),
            *("--json", "-"),
            *more,
        ]

    def run_once(self, device: str) -> tuple[int, list[dict[str, Any]]]:
        done = subprocess.run(
            [AGENT, *self.command(device, "--once")],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.stderr == ""
        return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    repository = Repository.open(folder / "repository", create=True)
    for version, changed, broken in (("1.0.0", 0, False), ("1.1.0", 3, False), ("1.2.0", 5, True)):
        tiny_artifact(folder / version, changed=changed, broken=broken)
        repository.publish(folder / version, name="tiny", version=version)
    process = subprocess.Popen(
        [SERVER, "serve", "--repository", repository.path, "--port", "0", "--json", "-"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        fleet = Fleet(told["url"], Path(told["token_file"]).read_text().strip())
        yield World(folder, told["url"], fleet, repository)
    finally:
        process.terminate()
        process.wait(30)
        assert process.stdout is not None
        process.stdout.close()


def events_of(rows: list[dict[str, Any]]) -> list[str]:
    return [row["event"] for row in rows]


def test_full_then_delta_then_a_broken_release_that_is_rolled_back(world: World) -> None:
    world.command("trip")
    world.offer("trip", "1.0.0")
    code, rows = world.run_once("trip")
    assert code == 0
    assert events_of(rows) == ["poll", "downloading", "installed", "confirmed"]
    assert rows[2]["package"] == "full"

    world.offer("trip", "1.1.0")
    code, rows = world.run_once("trip")
    assert code == 0
    assert (rows[2]["package"], rows[2]["slot"]) == ("delta", "b")
    slots = world.folder / "trip" / "state" / "slots"
    for file in (world.folder / "1.1.0").iterdir():
        assert (slots / "b" / file.name).read_bytes() == file.read_bytes()
    assert Artifact.open(slots / "b").digest == Artifact.open(world.folder / "1.1.0").digest

    world.offer("trip", "1.2.0")
    code, rows = world.run_once("trip")
    assert code == 1
    assert (rows[-1]["event"], rows[-1]["version"], rows[-1]["to"]) == ("rolled_back", "1.2.0", "1.1.0")
    assert "bit for bit" in rows[-1]["reason"]
    device = world.fleet.device("trip")
    assert device["installed"] == {"name": "tiny", "version": "1.1.0"}
    assert rows[-1]["reason"] in json.dumps(device["actions"])
    assert events_of(world.run_once("trip")[1]) == ["poll"]


KILLED = """
import os, signal, sys
from pathlib import Path
from edgewright_device import cli, health
from edgewright_device.slots import Disk

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

where = sys.argv.pop(1)
if where == "install":
    Disk.rename = lambda self, source, target, rename=Disk.rename: (
        die() if source.name == "release" else rename(self, source, target)
    )
else:
    health.check = die
cli.main()
"""


@pytest.mark.parametrize("where", ["install", "trial"])
def test_kill_9_in_the_middle_is_made_good_by_the_next_run(world: World, where: str) -> None:
    device = f"killed-in-{where}"
    world.command(device)
    world.offer(device, "1.0.0")
    assert world.run_once(device)[0] == 0
    world.offer(device, "1.1.0")
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, where, *world.command(device, "--once")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    code, rows = world.run_once(device)
    assert code == 0
    assert "confirmed" in events_of(rows)
    assert ("installed" in events_of(rows)) == (where == "install")
    assert world.fleet.device(device)["installed"] == {"name": "tiny", "version": "1.1.0"}


KILLED_ANYWHERE = """
import os, signal, sys
from edgewright_device import cli

left = int(sys.argv.pop(1))

def counted(call):
    def counting(*arguments, **options):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **options)
    return counting

for name in ("fsync", "replace", "rename", "unlink", "rmdir"):
    setattr(os, name, counted(getattr(os, name)))
cli.main()
"""


@pytest.mark.slow
def test_kill_9_at_every_change_of_the_disk_is_made_good_by_the_next_run(world: World) -> None:
    point = 0
    while True:
        point += 1
        device = f"killed-at-{point}"
        state = world.folder / device / "state" / "slots"
        world.command(device)
        world.offer(device, "1.0.0")
        assert world.run_once(device)[0] == 0
        world.offer(device, "1.1.0")
        command = [sys.executable, "-c", KILLED_ANYWHERE, str(point), *world.command(device, "--once")]
        killed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if killed.returncode == 0:
            break
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        in_use = journal.read(state)
        assert in_use.current is not None
        assert in_use.release is not None
        want = Artifact.open(world.folder / in_use.release.version)
        assert Artifact.open(state / in_use.current).digest == want.digest
        assert world.run_once(device)[0] == 0
        last = journal.read(state).release
        assert last is not None
        assert last.version == "1.1.0"
        assert world.fleet.device(device)["installed"] == {"name": "tiny", "version": "1.1.0"}
    assert point > 30


def test_run_serves_each_confirmed_release_until_sigterm(world: World) -> None:
    command = world.command("serves", "--interval", "0.05", "--listen", "127.0.0.1:0")
    with subprocess.Popen(
        [AGENT, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as agent:
        try:
            assert agent.stdout is not None
            assert agent.stderr is not None
            lines = (json.loads(line) for line in islice(agent.stdout, 500))
            url = next(line["url"] for line in lines if line["event"] == "listening")
            for version in ("1.0.0", "1.1.0"):
                world.offer("serves", version)
                assert next(line["version"] for line in lines if line["event"] == "confirmed") == version
                x = samples(2)
                want = Runner(Artifact.open(world.folder / version)).run({"x": x})["y"]
                # The answer to a poll comes after the swap.
                assert next(line for line in lines if line["event"] == "poll")
                np.testing.assert_array_equal(post(url, x), want)
            agent.send_signal(signal.SIGTERM)
            assert agent.wait(30) == 0
            assert agent.stderr.read() == ""
        finally:
            agent.kill()


def post(url: str, x: Any) -> Any:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
    try:
        connection.request("POST", "/infer", body=safetensors.numpy.save({"x": x}))
        response = connection.getresponse()
        assert response.status == 200
        return safetensors.numpy.load(response.read())["y"]
    finally:
        connection.close()


def test_a_server_that_is_away_is_an_error_event_and_exit_1(world: World, call: Call) -> None:
    command = world.command("away", "--once")
    command[command.index("--server") + 1] = "http://127.0.0.1:9"
    code, out, _ = call(*command)
    assert code == 1
    (row,) = [json.loads(line) for line in out.splitlines()]
    assert row["event"] == "error"
    assert "is the server running?" in row["reason"]
