"""Changed manifests and golden vectors: read, or refused with the documented error, never anything else."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest

from device.tiny import tiny_artifact
from edgewright_device import Artifact, ArtifactError
from edgewright_device.golden import decode_golden

MANY = pytest.mark.parametrize("count", [400, pytest.param(25_000, marks=pytest.mark.slow)])

VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2,
        255,
        256,
        1 << 20,
        (1 << 20) + 1,
        1 << 33,
        1 << 63,
        -(1 << 70),
        10**400,
    ),
    *(0.0, -0.0, 0.5, 1e308, -1e-320, float("nan"), float("inf"), -float("inf")),
    *(
        "",
        "x",
        "x" * 65,
        "x" * 256,
        "é",
        "\ud800",
        "\0",
        "../x",
        "float32",
        "int64",
        "a" * 64,
        "manifest.json",
    ),
    *([], {}, [None], [None, 1], [[]], {"size_bytes": 1}, [None, *[1] * 9]),
)
TOKENS = (
    *(b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07", b"\x01\x00\x10\x00"),
    *(b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\x08\x00", b"\x63\x00", b"\x01\x00"),
    *(
        b"input.",
        b"output.",
        b".npy",
        b"\x93NUMPY",
        b"<f4",
        b"<i8",
        b"|O",
        b">f4",
        b"(,)",
        b"'fortran_order': True",
    ),
)


def places(data: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to every value in JSON data."""
    inner = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [path for key, value in inner for path in ((*at, key), *places(value, (*at, key)))]


def changed_json(text: bytes, rng: random.Random) -> bytes:
    data = json.loads(text)

    def value() -> Any:
        return copy.deepcopy(rng.choice(VALUES))

    for _ in range(rng.randint(1, 3)):
        path = rng.choice(places(data) or [("format",)])
        holder = data
        for key in path[:-1]:
            holder = holder[key]
        match rng.randrange(4):
            case 0 if path[-1] in holder or isinstance(holder, list):
                del holder[path[-1]]
            case 1 if isinstance(holder, list):
                holder.insert(path[-1], value())
            case 1:
                holder[str(value())] = value()
            case _:
                holder[path[-1]] = value()
    return json.dumps(data).encode()


def changed_bytes(data: bytes, rng: random.Random) -> bytes:
    made = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(made) or 1)
        match rng.randrange(6):
            case 0 if made:
                made[at] ^= 1 << rng.randrange(8)
            case 1:
                del made[at : at + rng.randint(1, 20)]
            case 2:
                made[at:at] = rng.choice(TOKENS)
            case 3 if made:
                begin = rng.randrange(len(made))
                made[at:at] = made[begin : begin + rng.randint(1, 64)]
            case _:
                token = rng.choice(TOKENS)
                made[at : at + len(token)] = token
    return bytes(made)


@MANY
def test_a_changed_manifest_is_read_or_an_artifact_error(tmp_path: Path, count: int) -> None:
    path = tiny_artifact(tmp_path / "good.ew").path
    good = (path / "manifest.json").read_bytes()
    rng, refusals = random.Random(count), []
    for _ in range(count):
        text = changed_json(good, rng) if rng.random() < 0.7 else changed_bytes(good, rng)
        (path / "manifest.json").write_bytes(text)
        try:
            Artifact.open(path)
        except ArtifactError as error:
            refusals.append(str(error))
    assert all(refusal.startswith(str(path)) for refusal in refusals)
    assert count // 2 < len(refusals) < count


@MANY
def test_changed_golden_vectors_are_read_or_an_artifact_error(tmp_path: Path, count: int) -> None:
    good = tiny_artifact(tmp_path / "good.ew").read("golden.npz")
    rng, refusals = random.Random(count), []
    for _ in range(count):
        try:
            decode_golden(changed_bytes(good, rng), where="golden.npz")
        except ArtifactError as error:
            refusals.append(str(error))
    assert all(refusal.startswith("golden.npz: ") for refusal in refusals)
    assert count // 2 < len(refusals) < count
