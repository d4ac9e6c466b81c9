"""What the agent promises: the wanted release when it is good, else the last good one, and a report."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from device.fakes import MemoryClient, MemoryServer, Report
from device.tiny import samples, tiny_artifact
from edgewright_device import Runner, agent, health
from edgewright_device.agent import Agent, Event
from edgewright_device.journal import SlotRelease, Trial
from edgewright_device.slots import Disk
from edgewright_ota import Repository

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """1.0.0, then 1.1.0 and 1.3.0 with deltas, a broken 1.2.0, and 1.4.0 with rollback index 1."""
    folder = tmp_path_factory.mktemp("published")
    repository = Repository.open(folder / "repository", create=True)

    def publish(version: str, *, changed: int, broken: bool = False, rollback_index: int = 0) -> None:
        path = folder / version
        tiny_artifact(path, changed=changed, broken=broken)
        repository.publish(path, name="tiny", version=version, rollback_index=rollback_index)

    publish("1.0.0", changed=0)
    publish("1.1.0", changed=3)
    publish("1.2.0", changed=5, broken=True)
    publish("1.3.0", changed=6)
    publish("1.4.0", changed=7, rollback_index=1)
    publish("1.5.0", changed=8)
    return repository


class Bench:
    """A device on a bench: its slots, its server, its clock, and what it ran."""

    def __init__(self, folder: Path, repository: Repository) -> None:
        self.folder = folder
        self.server = MemoryServer()
        self.client = MemoryClient(repository, folder / "downloads")
        self.now = NOON
        self.random = 0.5
        self.releases: list[tuple[Runner, SlotRelease]] = []
        self.events: list[Event] = []
        self.serving: dict[str, int] = {}  # how many releases had been handed on when an event was last said
        self._agent: Agent | None = None

    def boot(self) -> Agent:
        """Starts the agent's process anew."""
        self.shut_down()
        self._agent = Agent(
            self.folder / "slots",
            ddi=self.server,
            client=self.client,
            attributes={"cpu": "scalar"},
            now=lambda: self.now,
            random=lambda: self.random,
            on_event=self._hear,
            on_release=lambda runner, release: self.releases.append((runner, release)),
        )
        return self._agent

    def _hear(self, event: Event) -> None:
        self.events.append(event)
        self.serving[event.event] = len(self.releases)

    def shut_down(self) -> None:
        if self._agent is not None:
            self._agent.close()

    def update(self, version: str, *, id: str = "1") -> tuple[Event, ...]:  # noqa: A002
        self.server.offer(version, id=id)
        return self.step()

    def step(self) -> tuple[Event, ...]:
        assert self._agent is not None
        return self._agent.step()


@pytest.fixture
def bench(tmp_path: Path, published: Repository) -> Iterator[Bench]:
    bench = Bench(tmp_path, published)
    yield bench
    bench.shut_down()


def kinds(events: tuple[Event, ...]) -> list[str]:
    return [e.event for e in events]


def version_in_use(agent: Agent) -> str | None:
    release = agent.slots.journal.release
    return None if release is None else release.version


def test_a_release_serves_before_it_is_said_to_be_confirmed(bench: Bench) -> None:
    bench.boot()
    bench.update("1.0.0")
    assert bench.serving == {"poll": 0, "downloading": 0, "installed": 0, "confirmed": 1}


def test_first_release_is_fetched_whole_confirmed_and_reported(bench: Bench) -> None:
    agent = bench.boot()
    events = bench.update("1.0.0")
    assert kinds(events) == ["poll", "downloading", "installed", "confirmed"]
    assert list(events) == bench.events
    assert events[2].package == "full"
    assert events[2].size_bytes == agent_package_bytes(bench, "1.0.0", None)
    assert events[3].latency_ms is not None
    assert version_in_use(agent) == "1.0.0"
    assert [r.execution for r in bench.server.reports] == ["proceeding", "closed"]
    assert bench.server.closed == [Report("1", "closed", "success", ("runs tiny 1.0.0",))]
    runner, release = bench.releases[-1]
    assert release.version == "1.0.0"
    assert runner.run({"x": samples(2)})["y"].shape == (2, 5)


def agent_package_bytes(bench: Bench, version: str, base: str | None) -> int:
    package = bench.client.repository.release("tiny", version).package(base)
    assert package is not None
    return package.size_bytes


def test_the_delta_is_taken_when_its_base_is_here(bench: Bench) -> None:
    agent = bench.boot()
    bench.update("1.0.0")
    events = bench.update("1.1.0", id="2")
    assert bench.client.downloads == ["full.ewpk", "from-1.0.0.ewpk"]
    assert (events[2].event, events[2].package, events[2].slot) == ("installed", "delta", "b")
    assert version_in_use(agent) == "1.1.0"


def test_a_delta_for_another_base_is_left_alone(bench: Bench) -> None:
    agent = bench.boot()
    bench.update("1.0.0")
    bench.update("1.3.0", id="2")  # its delta starts from 1.2.0
    assert bench.client.downloads == ["full.ewpk", "full.ewpk"]
    assert version_in_use(agent) == "1.3.0"


def test_the_full_package_follows_when_the_delta_does_not_apply(bench: Bench) -> None:
    agent = bench.boot()
    bench.update("1.0.0")
    bench.client.damaged.add("from-1.0.0.ewpk")
    events = bench.update("1.1.0", id="2")
    assert kinds(events) == ["poll", "downloading", "error", "downloading", "installed", "confirmed"]
    assert [e.package for e in events[1:5]] == ["delta", "delta", "full", "full"]
    assert version_in_use(agent) == "1.1.0"


def test_a_base_that_rotted_on_the_disk_does_not_stop_an_update(bench: Bench) -> None:
    agent = bench.boot()
    bench.update("1.0.0")
    assert agent.slots.active is not None
    (agent.slots.active / "weights.safetensors").write_bytes(b"rot")
    events = bench.update("1.1.0", id="2")
    assert kinds(events)[-1] == "confirmed"
    assert version_in_use(agent) == "1.1.0"


def test_a_broken_release_is_rolled_back_and_the_server_told_why(bench: Bench) -> None:
    agent = bench.boot()
    bench.update("1.0.0")
    events = bench.update("1.2.0", id="7")
    last = events[-1]
    assert (last.event, last.version, last.to) == ("rolled_back", "1.2.0", "1.0.0")
    assert last.reason is not None
    assert "do not equal the golden ones bit for bit" in last.reason
    report = bench.server.closed[-1]
    assert (report.deployment, report.result) == ("7", "failure")
    assert report.details == (last.reason, "runs tiny 1.0.0")
    assert version_in_use(agent) == "1.0.0"
    assert bench.releases[-1][1].version == "1.0.0"


def test_nothing_wanted_changes_nothing(bench: Bench) -> None:
    agent = bench.boot()
    bench.update("1.0.0")
    journal = agent.slots.journal
    assert kinds(agent.step()) == ["poll"]
    assert agent.slots.journal == journal


def test_a_report_that_was_lost_is_made_again(bench: Bench) -> None:
    agent = bench.boot()
    bench.server.takes_reports = False
    assert kinds(bench.update("1.0.0"))[-1] == "error"
    assert version_in_use(agent) == "1.0.0"
    bench.server.takes_reports = True
    downloads = list(bench.client.downloads)
    agent.step()
    assert bench.server.closed == [Report("1", "closed", "success", ("runs tiny 1.0.0",))]

    bench.server.takes_reports = False
    bench.update("1.2.0", id="2")
    bench.server.takes_reports = True
    bench.boot().step()
    assert bench.server.closed[-1].result == "failure"
    assert "bit for bit" in bench.server.closed[-1].details[0]
    assert len(bench.client.downloads) == len(downloads) + 1


def test_a_failed_release_is_tried_again_when_it_is_deployed_again(bench: Bench) -> None:
    bench.boot()
    bench.update("1.2.0", id="1")
    events = bench.update("1.2.0", id="2")
    assert kinds(events) == ["poll", "downloading", "installed", "rolled_back"]


def test_a_release_below_the_confirmed_rollback_index_is_refused(bench: Bench) -> None:
    agent = bench.boot()
    bench.update("1.4.0")
    events = bench.update("1.5.0", id="2")
    assert kinds(events) == ["poll", "error"]
    assert bench.client.downloads == ["full.ewpk"]
    assert bench.server.closed[-1].result == "failure"
    assert "rollback index 0 is below 1" in bench.server.closed[-1].details[0]
    assert version_in_use(agent) == "1.4.0"


def test_an_unsigned_release_is_refused_and_reported(bench: Bench) -> None:
    bench.client.distrusted.add("1.0.0")
    agent = bench.boot()
    assert kinds(bench.update("1.0.0")) == ["poll", "error"]
    assert bench.server.closed[-1].details[0] == "tiny 1.0.0: is not signed by this repository's keys"
    assert agent.slots.journal.failure is not None


def test_a_damaged_full_package_is_refused_and_leaves_the_old_release(bench: Bench) -> None:
    agent = bench.boot()
    bench.update("1.0.0")
    bench.client.damaged |= {"full.ewpk", "from-1.0.0.ewpk"}
    assert kinds(bench.update("1.1.0", id="2"))[-1] == "error"
    assert bench.server.closed[-1].result == "failure"
    assert version_in_use(agent) == "1.0.0"
    bench.boot().step()
    assert bench.releases[-1][1].version == "1.0.0"


def test_a_download_cut_off_keeps_the_deployment_open_and_says_why(bench: Bench) -> None:
    agent = bench.boot()
    bench.client.cut_off = True
    assert kinds(bench.update("1.0.0")) == ["poll", "downloading", "error"]
    assert agent.delay_s < 60
    last = bench.server.reports[-1]
    assert (last.execution, last.result) == ("proceeding", "none")
    assert "cut off after 10 bytes" in last.details[0]
    bench.client.cut_off = False
    assert kinds(agent.step())[-1] == "confirmed"
    assert [r.result for r in bench.server.closed] == ["success"]


def test_a_full_disk_is_reported_with_the_bytes(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = bench.boot()
    bench.update("1.0.0")
    monkeypatch.setattr(Disk, "free_bytes", lambda *_: 10)
    assert kinds(bench.update("1.1.0", id="2")) == ["poll", "error"]
    assert "needs" in bench.server.closed[-1].details[0]
    assert "are free" in bench.server.closed[-1].details[0]
    assert version_in_use(agent) == "1.0.0"


def test_a_trial_cut_short_is_finished_at_the_next_start(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.boot()
    bench.update("1.0.0")
    interrupt_trial(bench, monkeypatch, "1.1.0")
    bench.server.deployment = None
    again = bench.boot()
    assert again.slots.journal.trial == Trial(slot="b", attempts=1, deployment="2")
    events = again.step()
    assert kinds(events) == ["confirmed", "poll"]
    assert bench.server.closed[-1] == Report("2", "closed", "success", ("runs tiny 1.1.0",))
    assert [r.version for _, r in bench.releases[-2:]] == ["1.0.0", "1.1.0"]


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the agent runs after it."""


def interrupt_trial(bench: Bench, monkeypatch: pytest.MonkeyPatch, version: str | None = None) -> None:
    def die(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(health, "check", die)
        if version is None:
            bench.boot()
        else:
            bench.server.offer(version, id="2")
        with pytest.raises(Killed):
            bench.step()


def test_a_release_that_kills_the_agent_is_reverted_after_three_attempts(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.boot()
    bench.update("1.0.0")
    interrupt_trial(bench, monkeypatch, "1.1.0")
    interrupt_trial(bench, monkeypatch)
    interrupt_trial(bench, monkeypatch)
    again = bench.boot()
    events = again.step()
    assert kinds(events)[0] == "rolled_back"
    assert events[0].to == "1.0.0"
    assert bench.server.closed[-1].result == "failure"
    assert "3 attempts ended with the agent killed" in bench.server.closed[-1].details[0]
    assert version_in_use(again) == "1.0.0"
    assert bench.releases[-1][1].version == "1.0.0"


def test_a_confirmed_release_that_rotted_gives_way_to_the_previous_one(bench: Bench) -> None:
    first = bench.boot()
    bench.update("1.0.0")
    bench.update("1.1.0", id="2")
    assert first.slots.active is not None
    (first.slots.active / "plan.bin").write_bytes(b"rot")
    again = bench.boot()
    events = again.step()
    assert (events[0].event, events[0].version, events[0].to) == ("rolled_back", "1.1.0", "1.0.0")
    assert bench.releases[-1][1].version == "1.0.0"
    assert again.slots.active is not None
    shutil.rmtree(again.slots.active)
    last = bench.boot().step()
    assert last[0].event == "error"
    assert last[0].reason is not None
    assert "there is no previous release" in last[0].reason


def test_a_rotten_release_is_replaced_when_the_server_sends_it_again(bench: Bench) -> None:
    first = bench.boot()
    bench.update("1.0.0")
    assert first.slots.active is not None
    (first.slots.active / "plan.bin").write_bytes(b"rot")
    again = bench.boot()
    events = bench.update("1.0.0", id="2")
    assert kinds(events) == ["error", "poll", "downloading", "installed", "confirmed"]
    assert again.slots.active == bench.folder / "slots" / "b"
    assert bench.server.closed[-1] == Report("2", "closed", "success", ("runs tiny 1.0.0",))


def test_an_unreachable_server_is_an_event_and_the_delay_doubles_with_jitter_up_to_its_cap(
    bench: Bench,
) -> None:
    agent_ = bench.boot()
    bench.server.reachable = False
    bench.random = 1.0
    delays = []
    for _ in range(12):
        events = agent_.step()
        assert kinds(events) == ["error"]
        delays.append(agent_.delay_s)
    assert delays[:4] == [5.0, 10.0, 20.0, 40.0]
    assert delays[-1] == agent.BACKOFF_MAX_S
    bench.random = 0.0
    agent_.step()
    assert agent_.delay_s == agent.BACKOFF_MAX_S / 2
    bench.server.reachable = True
    agent_.step()
    assert agent_.delay_s == pytest.approx(54.0)
    bench.random = 0.5
    agent_.step()
    assert agent_.delay_s == pytest.approx(60.0)


def test_the_server_gets_the_device_attributes_when_it_asks(bench: Bench) -> None:
    agent = bench.boot()
    agent.step()
    assert bench.server.config is None
    bench.server.wants_config = True
    agent.step()
    assert bench.server.config == {"cpu": "scalar"}


def test_run_ends_when_it_is_told_to_stop(bench: Bench) -> None:
    agent = bench.boot()
    stop = threading.Event()
    thread = threading.Thread(target=agent.run, args=(stop,))
    thread.start()
    stop.set()
    thread.join(30)
    assert not thread.is_alive()


def test_a_stop_during_a_download_ends_run_and_the_next_one_completes_it(bench: Bench) -> None:
    agent = bench.boot()
    stop = threading.Event()
    bench.client.during_download = stop.set
    bench.server.offer("1.0.0")
    agent.run(stop)
    assert kinds(tuple(bench.events)) == ["poll", "downloading"]
    assert bench.server.closed == []
    bench.client.during_download = None
    assert kinds(bench.boot().step())[-1] == "confirmed"


def test_an_event_is_one_json_line_without_what_is_not_known() -> None:
    event = Event(event="poll", at="2026-11-01T12:00:00.000+00:00", version="1.0.0")
    assert json.loads(event.to_json()) == {
        "event": "poll",
        "at": "2026-11-01T12:00:00.000+00:00",
        "version": "1.0.0",
    }
