from __future__ import annotations

import hashlib
import http.client
import json
import sqlite3
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import urllib3

from edgewright_ota import Client, DdiClient, Repository, ServerError, unpack
from edgewright_ota.release import scan
from edgewright_ota.server.store import MAX_REPORTS

from .conftest import Served, write_model

Request = Callable[..., tuple[int, Any, Any]]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, start_server: Callable[..., Served]) -> Served:
    """A server with model 1.0.0 and 1.1.0, and a gateway."""
    root = tmp_path_factory.mktemp("served")
    repository = Repository.open(root / "repository", create=True)
    for step, version in enumerate(["1.0.0", "1.1.0"]):
        repository.publish(write_model(root / version, seed=1, step=step), name="model", version=version)
    gateway = root / "gateway.token"
    gateway.touch(mode=0o600)
    gateway.write_text("a gateway's secret\n")
    return start_server(repository.path, "--gateway-token-file", str(gateway), "--poll-interval-s", "3725")


@pytest.fixture
def request_raw(served: Served) -> Request:
    pool = urllib3.PoolManager(retries=False)

    def ask(method: str, path: str, *, body: bytes | None = None, **headers: str) -> tuple[int, Any, Any]:
        sent = {key.replace("_", "-"): value for key, value in headers.items()}
        answer = pool.request(method, served.url + path, body=body, headers=sent)
        return answer.status, answer.data, answer.headers

    return ask


def add(served: Served, name: str, *tags: str) -> tuple[DdiClient, str]:
    token = served.fleet.add_device(name, tags=tags)
    return DdiClient(served.url, "default", name, token), token


def roll_out(served: Served, version: str, *names: str) -> int:
    return int(served.fleet.start_rollout("model", version, devices=names)["id"])


def test_a_device_is_offered_installs_reports_and_is_left_alone(served: Served, tmp_path: Path) -> None:
    ddi, _ = add(served, "trip")
    poll = ddi.poll()
    assert (poll.interval_s, poll.deployment, poll.wants_config) == (3725, None, True)
    ddi.send_config({"cpu": "avx2"})
    roll_out(served, "1.0.0", "trip")
    poll = ddi.poll()
    assert not poll.wants_config
    assert poll.deployment is not None
    assert (poll.deployment.name, poll.deployment.version) == ("model", "1.0.0")
    client = Client(
        tmp_path / "tuf",
        metadata_url=f"{served.url}/metadata",
        targets_url=f"{served.url}/targets",
        root=Repository.open(served.path).root_bytes,
    )
    release = client.release("model", "1.0.0")
    unpack(client.download(release, release.packages[0]), release, tmp_path / "slot")
    assert scan(tmp_path / "slot") == release.files
    ddi.feedback(poll.deployment.id, execution="proceeding", result="none", details=["downloaded"])
    assert served.fleet.device("trip")["action"]["status"] == "proceeding"
    assert ddi.poll().deployment == poll.deployment
    ddi.feedback(poll.deployment.id, execution="closed", result="success", details=["healthy"])
    assert ddi.poll().deployment is None
    row = served.fleet.device("trip")
    assert row["installed"] == {"name": "model", "version": "1.0.0"}
    assert row["attributes"] == {"cpu": "avx2"}
    assert row["last_poll"] is not None
    assert [(r["execution"], r["result"], r["details"]) for r in row["actions"][0]["reports"]] == [
        ("proceeding", "none", ["downloaded"]),
        ("closed", "success", ["healthy"]),
    ]


def test_a_device_that_failed_is_not_offered_the_rollout_again(served: Served) -> None:
    ddi, _ = add(served, "failing")
    roll_out(served, "1.0.0", "failing")
    first = ddi.poll().deployment
    assert first is not None
    ddi.feedback(first.id, execution="closed", result="success")
    rollout = roll_out(served, "1.1.0", "failing")
    second = ddi.poll().deployment
    assert second is not None
    reason = "golden vectors differ: 3 of 16"
    ddi.feedback(second.id, execution="closed", result="failure", details=[reason])
    assert ddi.poll().deployment is None
    row = served.fleet.device("failing")
    assert row["installed"]["version"] == "1.0.0"
    assert (row["action"]["status"], row["action"]["details"]) == ("failure", [reason])
    counts = {r["id"]: r["actions"] for r in served.fleet.rollouts()}
    assert counts[rollout] == {"failure": 1}
    # A new rollout of the same version is a new chance.
    roll_out(served, "1.1.0", "failing")
    third = ddi.poll().deployment
    assert third is not None
    assert third.id != second.id


def test_a_report_said_twice_is_taken_and_a_late_one_refused(served: Served) -> None:
    ddi, _ = add(served, "twice")
    roll_out(served, "1.0.0", "twice")
    deployment = ddi.poll().deployment
    assert deployment is not None
    for _ in range(2):
        ddi.feedback(deployment.id, execution="closed", result="success")
    with pytest.raises(ServerError, match="ended already") as caught:
        ddi.feedback(deployment.id, execution="proceeding", result="none")
    assert caught.value.status == 410
    assert len(served.fleet.device("twice")["actions"][0]["reports"]) == 1


def test_a_newer_rollout_supersedes_an_open_action(served: Served) -> None:
    ddi, _ = add(served, "superseded")
    roll_out(served, "1.0.0", "superseded")
    old = ddi.poll().deployment
    roll_out(served, "1.1.0", "superseded")
    new = ddi.poll().deployment
    assert old is not None
    assert new is not None
    assert new.version == "1.1.0"
    rows = list(served.fleet.actions(device="superseded"))
    assert [(a["version"], a["status"]) for a in rows] == [("1.1.0", "pending"), ("1.0.0", "superseded")]
    # A device that was busy with the old one may still report on it.
    ddi.feedback(old.id, execution="closed", result="success")
    assert served.fleet.device("superseded")["installed"]["version"] == "1.0.0"


def test_percent_tag_and_pause_are_obeyed_and_a_raise_only_adds(served: Served) -> None:
    devices = {f"share-{i}": add(served, f"share-{i}", "share")[0] for i in range(12)}

    def offered() -> set[str]:
        return {name for name, ddi in devices.items() if ddi.poll().deployment is not None}

    rollout = served.fleet.start_rollout("model", "1.0.0", percent=30, tag="share")["id"]
    first = offered()
    assert first < set(devices)
    served.fleet.change_rollout(rollout, percent=70)
    second = offered()
    assert first <= second
    served.fleet.change_rollout(rollout, state="paused")
    assert offered() == set()
    served.fleet.change_rollout(rollout, state="running", percent=100)
    assert offered() == set(devices)


def test_wrong_tokens_unknown_devices_and_tenants_are_refused(served: Served, request_raw: Request) -> None:
    _, token = add(served, "locked")
    add(served, "other")
    path = "/default/controller/v1/locked"
    for header in [
        "",
        token,
        f"TargetToken {token}x",
        "TargetToken ",
        f"Bearer {token}",
        f"GatewayToken {token}",
    ]:
        status, data, headers = request_raw("GET", path, Authorization=header)
        assert (status, headers["WWW-Authenticate"]) == (401, "TargetToken"), header
    unknown = request_raw("GET", "/default/controller/v1/nobody", Authorization=f"TargetToken {token}")
    other = request_raw("GET", "/default/controller/v1/other", Authorization=f"TargetToken {token}")
    assert unknown[:2] == other[:2] == (401, data)
    assert (
        request_raw("GET", "/elsewhere/controller/v1/locked", Authorization=f"TargetToken {token}")[0] == 404
    )
    assert request_raw("GET", path, Authorization=f"TargetToken {token}")[0] == 200
    renewed = served.fleet.renew_token("locked")
    assert request_raw("GET", path, Authorization=f"TargetToken {token}")[0] == 401
    assert request_raw("GET", path, Authorization=f"TargetToken {renewed}")[0] == 200


def test_only_a_hash_of_a_token_is_kept(served: Served) -> None:
    _, token = add(served, "hashed")
    for path in served.path.glob("server.db*"):
        assert token.encode() not in path.read_bytes()


def test_a_gateway_speaks_for_devices_and_adds_new_ones(served: Served, request_raw: Request) -> None:
    ddi = DdiClient(served.url, "default", "behind-gateway", "a gateway's secret", gateway=True)
    assert ddi.poll().wants_config
    assert served.fleet.device("behind-gateway")["installed"] is None
    bad = request_raw("GET", "/default/controller/v1/%20", Authorization="GatewayToken a gateway's secret")
    assert bad[0] == 401


def test_another_devices_action_is_not_there(served: Served, request_raw: Request) -> None:
    mine, _ = add(served, "mine")
    _, token = add(served, "thief")
    roll_out(served, "1.0.0", "mine")
    deployment = mine.poll().deployment
    assert deployment is not None
    header = f"TargetToken {token}"
    own = f"/default/controller/v1/thief/deploymentBase/{deployment.id}"
    assert request_raw("GET", own, Authorization=header)[0] == 404
    body = json.dumps({"status": {"execution": "closed", "result": {"finished": "failure"}}}).encode()
    assert request_raw("POST", f"{own}/feedback", body=body, Authorization=header)[0] == 404
    theirs = f"/default/controller/v1/mine/deploymentBase/{deployment.id}"
    assert request_raw("GET", theirs, Authorization=header)[0] == 401
    for strange in ["0", "-1", "x", "9" * 40, "%C2%B2"]:
        path = f"/default/controller/v1/thief/deploymentBase/{strange}"
        assert request_raw("GET", path, Authorization=header)[0] == 404
    assert served.fleet.device("mine")["action"]["status"] == "pending"


def test_a_deployment_has_what_other_ddi_clients_need(served: Served, request_raw: Request) -> None:
    ddi, token = add(served, "generic")
    roll_out(served, "1.1.0", "generic")
    deployment = ddi.poll().deployment
    assert deployment is not None
    path = f"/default/controller/v1/generic/deploymentBase/{deployment.id}"
    body = json.loads(request_raw("GET", path, Authorization=f"TargetToken {token}")[1])
    assert body["deployment"]["download"] == body["deployment"]["update"] == "forced"
    (chunk,) = body["deployment"]["chunks"]
    assert [a["filename"] for a in chunk["artifacts"]] == ["full.ewpk", "from-1.0.0.ewpk"]
    for artifact in chunk["artifacts"]:
        link = artifact["_links"]["download-http"]["href"].removeprefix(served.url)
        status, data, headers = request_raw("GET", link)
        assert status == 200
        assert len(data) == artifact["size"]
        assert headers["Cache-Control"] == "public, max-age=31536000, immutable"
        for name, digest in artifact["hashes"].items():
            assert hashlib.new(name, data).hexdigest() == digest
        status, part, headers = request_raw("GET", link, Range="bytes=10-19")
        assert (status, part) == (206, data[10:20])
        assert headers["Content-Range"] == f"bytes 10-19/{len(data)}"


def test_a_poll_that_brings_nothing_new_is_a_304_and_writes_nothing(
    served: Served, request_raw: Request
) -> None:
    ddi, token = add(served, "idle")
    ddi.send_config({"cpu": "avx2"})
    path, header = "/default/controller/v1/idle", f"TargetToken {token}"
    status, _, headers = request_raw("GET", path, Authorization=header)
    assert status == 200
    database = sqlite3.connect(served.path / "server.db")
    try:
        version = database.execute("PRAGMA data_version").fetchone()
        stats = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in served.path.glob("server.db*")}
        for _ in range(20):
            again = request_raw("GET", path, Authorization=header, If_None_Match=headers["ETag"])
            assert (again[0], again[1], again[2]["ETag"]) == (304, b"", headers["ETag"])
            assert ddi.poll().deployment is None
        assert database.execute("PRAGMA data_version").fetchone() == version
        kept = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in served.path.glob("server.db*")}
        moved = {p.name for p in stats if stats[p] != kept[p]}
        assert moved <= {"server.db-shm"}
    finally:
        database.close()


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"[]", 400),
        (b"\xff", 400),
        (b"[" * 60_000, 400),
        (b"{}", 400),
        (b'{"status": {"execution": "closed"}}', 400),
        (b'{"status": {"execution": "never", "result": {"finished": "success"}}}', 400),
        (b'{"status": {"execution": "closed", "result": {"finished": "maybe"}}}', 400),
        (b'{"status": {"execution": "closed", "result": {"finished": "none"}, "details": [1]}}', 400),
        (b" " * 65_537, 413),
        (b" " * 5_000_000, 413),
    ],
)
def test_bad_feedback_is_refused_and_changes_nothing(
    served: Served, request_raw: Request, body: bytes, status: int
) -> None:
    name = f"bad-{abs(hash(body))}"
    ddi, token = add(served, name)
    roll_out(served, "1.0.0", name)
    deployment = ddi.poll().deployment
    assert deployment is not None
    path = f"/default/controller/v1/{name}/deploymentBase/{deployment.id}/feedback"
    answer = request_raw("POST", path, body=body, Authorization=f"TargetToken {token}")
    assert answer[0] == status
    assert "error" in json.loads(answer[1])
    assert served.fleet.device(name)["action"]["status"] == "pending"


def test_a_chatty_device_is_stopped(served: Served) -> None:
    ddi, _ = add(served, "chatty")
    roll_out(served, "1.0.0", "chatty")
    deployment = ddi.poll().deployment
    assert deployment is not None
    database = sqlite3.connect(served.path / "server.db")
    try:
        with database:
            columns = "(action, execution, result, details, created)"
            database.executemany(
                f"INSERT INTO reports {columns} VALUES (?, 'x', 'x', '[]', '')",
                [(int(deployment.id),)] * MAX_REPORTS,
            )
    finally:
        database.close()
    with pytest.raises(ServerError, match="too many"):
        ddi.feedback(deployment.id, execution="proceeding", result="none")


def test_config_is_merged_replaced_and_removed(served: Served, request_raw: Request) -> None:
    _, token = add(served, "configured")

    def put(body: object) -> int:
        path, header = "/default/controller/v1/configured/configData", f"TargetToken {token}"
        return request_raw("PUT", path, body=json.dumps(body).encode(), Authorization=header)[0]

    def attributes() -> object:
        return served.fleet.device("configured")["attributes"]

    assert put({"data": {"a": "1", "b": "2"}}) == 200
    assert put({"mode": "merge", "data": {"b": "3"}}) == 200
    assert attributes() == {"a": "1", "b": "3"}
    assert put({"mode": "remove", "data": {"b": ""}}) == 200
    assert attributes() == {"a": "1"}
    assert put({"mode": "replace", "data": {"c": "4"}}) == 200
    assert attributes() == {"c": "4"}
    for bad in [{}, {"data": []}, {"data": {"a": 1}}, {"data": {}, "mode": "x"}, {"data": {"a" * 200: ""}}]:
        assert put(bad) == 400
    assert put({"data": {str(i): "" for i in range(65)}}) == 400
    assert attributes() == {"c": "4"}


@pytest.mark.parametrize(
    "path",
    [
        "/targets/../keys/root.pem",
        "/targets/%2e%2e/keys/root.pem",
        "/targets/..%2fkeys%2froot.pem",
        "/metadata/../management.token",
        "/metadata/%2e%2e/server.db",
        "/targets//etc/passwd",
        "/keys/root.pem",
        "/metadata/",
        "/targets/model",
    ],
)
def test_nothing_but_public_files_is_served(served: Served, path: str) -> None:
    connection = http.client.HTTPConnection(served.url.removeprefix("http://"))
    try:
        connection.putrequest("GET", path)  # sent as it stands, without tidying
        connection.endheaders()
        assert connection.getresponse().status == 404
    finally:
        connection.close()


def test_management_needs_its_token(served: Served, request_raw: Request) -> None:
    _, token = add(served, "not-a-manager")
    for path in ["devices", "devices/x", "rollouts", "actions", "releases"]:
        for header in ["", f"Bearer {token}", "Bearer ", f"TargetToken {served.token}"]:
            assert request_raw("GET", f"/api/v1/{path}", Authorization=header)[0] == 401
    assert request_raw("POST", "/api/v1/devices", body=b"{}")[0] == 401
    assert request_raw("PATCH", "/api/v1/rollouts/1", body=b"{}")[0] == 401


def test_management_refuses_what_makes_no_sense(served: Served, request_raw: Request) -> None:
    fleet = served.fleet
    add(served, "taken")
    asks: list[tuple[Callable[[], object], int]] = [
        (partial(fleet.add_device, "taken"), 409),
        (partial(fleet.add_device, "../x"), 400),
        (partial(fleet.add_device, "x", tags=["t" * 65]), 400),
        (partial(fleet.device, "nobody"), 404),
        (partial(fleet.remove_device, "nobody"), 404),
        (partial(fleet.renew_token, "nobody"), 404),
        (partial(fleet.start_rollout, "model", "9.9.9"), 400),
        (partial(fleet.start_rollout, "model", "1.0.0", percent=101), 400),
        (partial(fleet.start_rollout, "model", "1.0.0", percent=float("nan")), 400),
        (partial(fleet.change_rollout, 10**6, percent=1), 404),
        (partial(fleet.change_rollout, 1, state="lost"), 400),
        (partial(fleet.change_rollout, 1), 400),
    ]
    for ask, status in asks:
        with pytest.raises(ServerError) as caught:
            ask()
        assert caught.value.status == status
    header = f"Bearer {served.token}"
    assert request_raw("GET", "/api/v1/actions?rollout=x", Authorization=header)[0] == 400
    assert request_raw("DELETE", "/api/v1/rollouts", Authorization=header)[0] == 405


def test_a_removed_device_is_gone_with_its_actions(served: Served) -> None:
    ddi, _ = add(served, "removed")
    roll_out(served, "1.0.0", "removed")
    assert ddi.poll().deployment is not None
    served.fleet.remove_device("removed")
    with pytest.raises(ServerError, match="token"):
        ddi.poll()
    assert list(served.fleet.actions(device="removed")) == []
    assert "removed" not in {d["id"] for d in served.fleet.devices()}


def test_releases_are_listed_with_their_packages(served: Served) -> None:
    rows = served.fleet.releases()
    assert [(r["name"], r["version"], len(r["packages"])) for r in rows] == [
        ("model", "1.0.0", 1),
        ("model", "1.1.0", 2),
    ]


def test_a_release_published_while_serving_is_there_at_once(served: Served, tmp_path: Path) -> None:
    repository = Repository.open(served.path)
    release = repository.publish(write_model(tmp_path / "v", seed=5), name="late", version="1.0.0")
    client = Client(
        tmp_path / "tuf",
        metadata_url=f"{served.url}/metadata",
        targets_url=f"{served.url}/targets",
        root=repository.root_bytes,
    )
    assert client.release("late", "1.0.0") == release
    served.fleet.start_rollout("late", "1.0.0", devices=["nobody"])
