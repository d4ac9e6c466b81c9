from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewright_ota.server.rollouts import (
    Action,
    ActionStatus,
    Device,
    Rollout,
    includes,
    is_due,
    pick,
    share,
)


def rollout(number: int = 1, percent: float = 100, **more: object) -> Rollout:
    values = {"tag": None, "devices": frozenset(), "state": "running", "created": ""} | more
    return Rollout(id=number, name="model", version=f"1.{number}.0", percent=percent, **values)  # type: ignore[arg-type]


def device(name: str = "d", *tags: str, installed: tuple[str, str] | None = None) -> Device:
    return Device(id=name, tags=frozenset(tags), attributes={}, installed=installed, created="")


def action(status: ActionStatus) -> Action:
    return Action(
        id=1,
        device="d",
        rollout=1,
        name="model",
        version="1.1.0",
        status=status,
        details=(),
        created="",
        updated="",
    )


@given(st.text(min_size=1), st.integers(1), st.floats(0, 100), st.floats(0, 100))
def test_a_higher_percent_only_adds_devices(name: str, number: int, one: float, other: float) -> None:
    low, high = sorted((one, other))
    one_device = device(name)
    assert includes(rollout(number, low), one_device) <= includes(rollout(number, high), one_device)
    assert not includes(rollout(number, 0), one_device)
    assert includes(rollout(number, 100), one_device)


def test_the_share_is_fixed_uniform_and_fresh_for_each_rollout() -> None:
    names = [f"device-{i}" for i in range(4000)]
    # A fleet in the middle of a rollout must not be dealt anew by another version of the server.
    assert share("device-1", 1) == pytest.approx(25.293169446204544)
    for percent in (1, 10, 50):
        count = sum(includes(rollout(7, percent), device(n)) for n in names)
        assert abs(count - 40 * percent) < 5 * (40 * percent) ** 0.5
    first = {n for n in names if share(n, 1) < 10}
    second = {n for n in names if share(n, 2) < 10}
    assert len(first & second) < 80


def test_tags_lists_and_pauses_are_kept() -> None:
    assert includes(rollout(tag="lab"), device("d", "lab"))
    assert not includes(rollout(tag="lab"), device("d", "field"))
    assert includes(rollout(devices=frozenset({"d"})), device("d"))
    assert not includes(rollout(devices=frozenset({"e"})), device("d"))
    assert not includes(rollout(state="paused"), device("d"))


def test_the_newest_rollout_that_includes_a_device_counts() -> None:
    new, old = rollout(2, 100, tag="lab"), rollout(1)
    assert pick([new, old], device("d", "lab")) == new
    assert pick([new, old], device("d")) == old
    assert pick([], device("d")) is None


def test_what_is_installed_or_ended_is_not_offered() -> None:
    one = rollout(1)
    assert is_due(one, device(), None)
    assert not is_due(one, device(installed=("model", "1.1.0")), None)
    assert is_due(one, device(installed=("model", "1.0.0")), None)
    ended: list[ActionStatus] = ["success", "failure", "canceled"]
    going: list[ActionStatus] = ["pending", "proceeding", "superseded"]
    assert not any(is_due(one, device(), action(s)) for s in ended)
    assert all(is_due(one, device(), action(s)) for s in going)
