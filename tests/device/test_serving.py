"""The local inference server: right answers, clear refusals, and a release that is swapped whole."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from device.tiny import samples, tiny_artifact
from edgewright_device import Runner
from edgewright_device.errors import ServingError
from edgewright_device.journal import SlotRelease
from edgewright_device.serving import Serving

CAP = 10_000


@pytest.fixture(scope="module")
def runners(tmp_path_factory: pytest.TempPathFactory) -> tuple[Runner, Runner]:
    folder = tmp_path_factory.mktemp("runners")
    return (
        Runner(tiny_artifact(folder / "one.ew", seed=1)),
        Runner(tiny_artifact(folder / "two.ew", seed=2)),
    )


def release(version: str) -> SlotRelease:
    return SlotRelease(name="tiny", version=version, digest="0" * 64)


@pytest.fixture
def serving(runners: tuple[Runner, Runner]) -> Iterator[Serving]:
    with Serving(max_body_bytes=CAP) as serving:
        serving.swap(runners[0], release("1.0.0"))
        yield serving


def ask(
    serving: Serving, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, bytes]:
    host, port = serving.url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=20)
    try:
        connection.request(method, path, body=body, headers=headers or {})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def error(body: bytes) -> str:
    return str(json.loads(body)["error"])


def tensors(**arrays: Any) -> bytes:
    return safetensors.numpy.save(arrays)


def test_infer_answers_as_the_runner_does(serving: Serving, runners: tuple[Runner, Runner]) -> None:
    x = samples(3)
    status, body = ask(serving, "POST", "/infer", tensors(x=x))
    assert status == 200
    np.testing.assert_array_equal(safetensors.numpy.load(body)["y"], runners[0].run({"x": x})["y"])


def test_status_names_the_release_and_its_ports(serving: Serving) -> None:
    status, body = ask(serving, "GET", "/status")
    assert status == 200
    told = json.loads(body)
    assert told["release"]["version"] == "1.0.0"
    assert told["backend"] == "native"
    assert told["inputs"] == [{"name": "x", "shape": [None, 16], "dtype": "float32"}]


def test_before_the_first_release_infer_is_503(runners: tuple[Runner, Runner]) -> None:
    with Serving() as serving:
        status, body = ask(serving, "POST", "/infer", tensors(x=samples(1)))
        assert (status, error(body)) == (503, "no release is confirmed on this device yet")
        assert json.loads(ask(serving, "GET", "/status")[1])["release"] is None


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (tensors(z=samples(1)), "this model takes ['x']"),
        (tensors(x=samples(1), z=samples(1)), "this model takes ['x']"),
        (tensors(x=samples(1)[:, :3]), "shape (1, 3), (N, 16) with N >= 1 is needed"),
        (tensors(x=samples(1)[:0]), "N >= 1 is needed"),
        (tensors(x=samples(1).astype(np.float64)), "dtype float64, float32 is needed"),
        (tensors(x=samples(1))[:-1], "not safetensors"),
        (b"", "not safetensors"),
        (b"\xff" * 100, "not safetensors"),
        (b"\x40\0\0\0\0\0\0\0" + b"{" * 64, "not safetensors"),
        (
            tensors(x=samples(1)).replace(b'"F32"', b'"BAD"'),
            "not safetensors",
        ),
    ],
)
def test_a_bad_body_is_400_and_says_what_is_wrong(serving: Serving, body: bytes, message: str) -> None:
    status, answer = ask(serving, "POST", "/infer", body)
    assert status == 400
    assert message in error(answer)
    assert ask(serving, "POST", "/infer", tensors(x=samples(1)))[0] == 200


def test_a_body_over_the_cap_is_413_even_while_it_is_sent(serving: Serving) -> None:
    status, body = ask(serving, "POST", "/infer", b"x" * (4 << 20))
    assert status == 413
    assert "at most 10000 are taken" in error(body)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Transfer-Encoding": "chunked"}, 411),
        ({"Content-Length": "-1"}, 400),
        ({"Content-Length": "many"}, 400),
        ({"Content-Length": "9" * 40}, 413),
    ],
)
def test_a_length_that_is_none_is_refused(serving: Serving, headers: dict[str, str], status: int) -> None:
    assert ask(serving, "POST", "/infer", headers=headers)[0] == status


@pytest.mark.parametrize(("method", "path"), [("GET", "/"), ("GET", "/infer"), ("POST", "/status")])
def test_other_paths_are_404_and_name_the_right_ones(serving: Serving, method: str, path: str) -> None:
    status, body = ask(serving, method, path, b"" if method == "POST" else None)
    assert status == 404
    assert "GET /status and POST /infer" in error(body)


def test_one_connection_serves_many_requests(serving: Serving) -> None:
    host, port = serving.url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=20)
    try:
        for _ in range(3):
            connection.request("POST", "/infer", body=tensors(x=samples(1)))
            response = connection.getresponse()
            assert (response.status, len(response.read()) > 0) == (200, True)
    finally:
        connection.close()


def test_a_swap_under_load_is_whole(serving: Serving, runners: tuple[Runner, Runner]) -> None:
    x = samples(2)
    right = [runner.run({"x": x})["y"].tobytes() for runner in runners]
    assert right[0] != right[1]
    answers: list[bytes] = []
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            status, body = ask(serving, "POST", "/infer", tensors(x=x))
            answers.append(safetensors.numpy.load(body)["y"].tobytes() if status == 200 else b"")

    threads = [threading.Thread(target=load) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for turn in range(20):
            serving.swap(runners[turn % 2], release(f"{turn}.0.0"))
            ask(serving, "POST", "/infer", tensors(x=x))
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
    assert answers
    assert set(answers) <= set(right)


class Failing(Runner):
    """A model that breaks while it runs."""

    def __init__(self, runner: Runner) -> None:
        self.artifact = runner.artifact
        self.backend = runner.backend

    def run(self, inputs: Any) -> Any:  # noqa: ARG002
        raise MemoryError("no memory left")


def test_a_model_that_breaks_is_500_and_the_server_goes_on(
    serving: Serving, runners: tuple[Runner, Runner]
) -> None:
    serving.swap(Failing(runners[0]), release("1.0.0"))
    status, body = ask(serving, "POST", "/infer", tensors(x=samples(1)))
    assert (status, error(body)) == (500, "the model failed: MemoryError: no memory left")
    serving.swap(runners[0], release("1.0.0"))
    assert ask(serving, "POST", "/infer", tensors(x=samples(1)))[0] == 200


def test_a_port_in_use_and_a_public_address_are_clear_errors(serving: Serving) -> None:
    port = int(serving.url.rpartition(":")[2])
    with pytest.raises(ServingError, match=rf"127\.0\.0\.1:{port}: cannot listen .*choose another port"):
        Serving("127.0.0.1", port)
    for host in ("0.0.0.0", "192.168.1.1", "example.org"):
        with pytest.raises(ServingError, match="not an IPv4 loopback address"):
            Serving(host)


def test_a_client_that_leaves_in_the_middle_hurts_nobody(
    serving: Serving, capfd: pytest.CaptureFixture[str]
) -> None:
    host, port = serving.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as client:
        client.sendall(b"POST /infer HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\nabc")
    assert ask(serving, "POST", "/infer", tensors(x=samples(1)))[0] == 200
    assert capfd.readouterr().err == ""


def test_close_is_idempotent_and_frees_the_port(runners: tuple[Runner, Runner]) -> None:
    serving = Serving()
    serving.start()
    port = int(serving.url.rpartition(":")[2])
    serving.close()
    serving.close()
    with Serving("127.0.0.1", port):
        pass
