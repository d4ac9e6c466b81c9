from __future__ import annotations

import hashlib
import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import edgewright_ota
from edgewright_ota import DdiClient, Repository

from .conftest import Done, Served, write_model

Run = Callable[..., Done]


@pytest.fixture(scope="module")
def repository_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cli")
    repository = Repository.open(root / "repository", create=True)
    for step, version in enumerate(["1.0.0", "1.1.0"]):
        repository.publish(
            write_model(root / version, seed=1, step=step), name="model", version=version, delta_from=None
        )
    return repository.path


def test_init_publish_and_delta_say_what_they_did(ota: Run, tmp_path: Path) -> None:
    path = tmp_path / "repository"
    done = ota("init", "--repository", path)
    assert (done.returncode, done.stderr) == (0, "")
    assert str(path / "root.json") in done.stdout
    assert (path / "root.json").read_bytes() == Repository.open(path).root_bytes
    release = {"repository": path, "name": "model"}
    for step, version in enumerate(["1.0.0", "1.1.0"]):
        folder = write_model(tmp_path / version, seed=1, step=step)
        options = [x for k, v in release.items() for x in (f"--{k}", v)]
        done = ota("publish", folder, *options, "--version", version, "--delta-from", "none", "--json", "-")
        assert (done.returncode, done.stderr) == (0, "")
        row = json.loads(done.stdout)
        assert (row["version"], len(row["files"]), len(row["packages"])) == (version, 4, 1)
    done = ota("delta", *options, "--version", "1.1.0", "--from", "1.0.0", "--json", tmp_path / "delta.json")
    assert done.returncode == 0
    assert "from-1.0.0.ewpk" in done.stdout
    assert json.loads((tmp_path / "delta.json").read_text())["base"] == "1.0.0"


def test_an_artifact_without_a_passed_report_about_it_is_refused(ota: Run, tmp_path: Path) -> None:
    path, folder = tmp_path / "repository", tmp_path / "model.ew"
    Repository.open(path, create=True)
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    digest = hashlib.sha256(b"{}").hexdigest()
    publish = ("publish", folder, "--repository", path, "--name", "model", "--version", "1.0.0")
    for report, match in [
        (None, "without a verification report"),
        ("not json", "cannot be read"),
        ("[]", "did not pass"),
        (json.dumps({"passed": False, "artifact": digest}), "did not pass"),
        (json.dumps({"passed": "true", "artifact": digest}), "did not pass"),
        (json.dumps({"passed": True, "artifact": "0" * 64}), "about another artifact"),
        (json.dumps({"passed": True}), "about another artifact"),
    ]:
        if report is not None:
            (folder / "report.json").write_text(report)
        done = ota(*publish)
        assert done.returncode == 2
        assert match in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert Repository.open(path).releases() == ()
    (folder / "report.json").write_text(json.dumps({"passed": True, "artifact": digest}))
    assert ota(*publish).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["publish", "{tmp}/absent", "-r", "{repo}", "--name", "m", "--version", "1.0.0"], "not a folder"),
        (["publish", "{tmp}", "-r", "{repo}", "--name", "m", "--version", "1.0.0"], "holds no file"),
        (["publish", "{repo}", "-r", "{repo}", "--name", "m", "--version", "one"], "semantic version"),
        (["publish", "{repo}", "-r", "{tmp}", "--name", "m", "--version", "1.0.0"], "edgewright-ota init"),
        (
            ["delta", "-r", "{repo}", "--name", "model", "--version", "9.0.0", "--from", "1.0.0"],
            "publish it first",
        ),
        (["serve", "-r", "{tmp}"], "edgewright-ota init"),
        (["serve", "-r", "{repo}", "--port", "0", "--host", "no.such.invalid"], "cannot listen"),
        (["serve", "-r", "{repo}", "--port", "0", "--database", "postgresql://x/y"], "sqlite:///PATH"),
        (["serve", "-r", "{repo}", "--port", "0", "--database", "nonsense"], "not a URL"),
        (["status", "--server", "http://127.0.0.1:1", "--token-file", "{tmp}/absent"], "no token"),
        (["rollout", "change", "1", "--server", "x", "--token-file", "y"], "give --percent"),
        (["publish"], "Missing"),
        (["nonsense"], "No such command"),
    ],
)
def test_bad_use_is_one_clear_message_and_code_2(
    ota: Run, repository_path: Path, tmp_path: Path, arguments: list[str], match: str
) -> None:
    done = ota(*(a.format(tmp=tmp_path, repo=repository_path) for a in arguments))
    assert done.returncode == 2
    assert match in done.stderr
    assert "Traceback" not in done.stderr


def test_a_server_out_of_reach_or_refusing_is_code_1(
    ota: Run, repository_path: Path, start_server: Callable[..., Served], tmp_path: Path
) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{held.getsockname()[1]}"
        token = tmp_path / "token"
        token.touch(mode=0o600)
        token.write_text("secret")
        done = ota("status", "--server", url, "--token-file", token)
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
        assert "is the server running" in done.stderr
    served = start_server(repository_path, "--database", f"sqlite:///{tmp_path}/a.db")
    done = ota("status", "--server", served.url, "--token-file", token)
    assert done.returncode == 1
    assert "401" in done.stderr
    token.chmod(0o644)
    done = ota("status", "--server", served.url, "--token-file", token)
    assert done.returncode == 2
    assert "chmod 600" in done.stderr


def test_a_port_or_database_in_use_is_one_line_and_code_2(
    ota: Run, repository_path: Path, start_server: Callable[..., Served], tmp_path: Path
) -> None:
    served = start_server(repository_path, "--database", f"sqlite:///{tmp_path}/b.db")
    port = served.url.rpartition(":")[2]
    done = ota("serve", "--repository", repository_path, "--port", port)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "in use" in done.stderr
    done = ota("serve", "-r", repository_path, "--port", 0, "--database", f"sqlite:///{tmp_path}/b.db")
    assert done.returncode == 2
    assert "another server uses it" in done.stderr


def test_a_server_ends_cleanly_and_remembers(
    repository_path: Path, start_server: Callable[..., Served], tmp_path: Path
) -> None:
    database = f"sqlite:///{tmp_path}/c.db"
    served = start_server(repository_path, "--database", database)
    token = served.fleet.add_device("kept")
    served.fleet.start_rollout("model", "1.0.0")
    ddi = DdiClient(served.url, "default", "kept", token)
    first = ddi.poll().deployment
    assert served.end() == 0
    assert served.process.stderr is not None
    assert served.process.stderr.read() == ""
    # One that is ended before its first request ends cleanly, too.
    assert start_server(repository_path, "--database", database).end() == 0
    again = start_server(repository_path, "--database", database)
    assert again.token == served.token
    assert DdiClient(again.url, "default", "kept", token).poll().deployment == first
    assert again.end() == 0


def test_a_fleet_is_run_from_the_command_line(
    ota: Run, repository_path: Path, start_server: Callable[..., Served], tmp_path: Path
) -> None:
    served = start_server(repository_path, "--database", f"sqlite:///{tmp_path}/d.db")
    token_file = repository_path / "management.token"
    assert token_file.stat().st_mode & 0o777 == 0o600
    where = ("--server", served.url, "--token-file", token_file)
    token = ota("device", "add", "press-7", "--tag", "lab", *where).stdout.strip()
    done = ota(
        "rollout", "start", "--name", "model", "--version", "1.1.0", "--tag", "lab", "--percent", 0, *where
    )
    assert done.returncode == 0
    ddi = DdiClient(served.url, "default", "press-7", token)
    assert ddi.poll().deployment is None
    (row,) = json.loads(ota("rollout", "list", "--json", "-", *where).stdout)
    assert ota("rollout", "change", row["id"], "--percent", 100, *where).returncode == 0
    deployment = ddi.poll().deployment
    assert deployment is not None
    ddi.feedback(deployment.id, execution="closed", result="failure", details=["golden vectors differ"])
    shown = ota("status", *where).stdout
    for text in ["press-7", "model 1.1.0", "failure", "golden vectors differ", "1 failure"]:
        assert text in shown
    status = json.loads(ota("status", "--json", "-", *where).stdout)
    assert status["devices"][0]["action"]["details"] == ["golden vectors differ"]
    assert "closed/failure" in ota("device", "show", "press-7", *where).stdout
    renewed = ota("device", "token", "press-7", *where).stdout.strip()
    assert DdiClient(served.url, "default", "press-7", renewed).poll().deployment is None
    assert ota("device", "remove", "press-7", *where).returncode == 0
    assert json.loads(ota("status", "--json", "-", *where).stdout)["devices"] == []


def test_the_program_ends_with_its_exit_code(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edgewright_ota", "serve", "--repository", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


def test_the_face_is_what_it_says() -> None:
    assert sorted(edgewright_ota.__all__) == edgewright_ota.__all__
    for name in edgewright_ota.__all__:
        assert getattr(edgewright_ota, name) is not None
    assert not hasattr(edgewright_ota, "nonsense")


def test_a_device_imports_no_server() -> None:
    unwanted = {"starlette", "uvicorn", "sqlalchemy", "torch", "typer", "rich"}
    code = f"import sys, edgewright_ota; print({unwanted} & {{m.split('.')[0] for m in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
