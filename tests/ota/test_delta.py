from __future__ import annotations

import json
import struct
from typing import Any

import hdiffpatch
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from edgewright_ota import PackageError, coding, delta
from edgewright_ota.tensors import LayoutError, parse_layout

DTYPES = ["int8", "uint8", "bool", "int16", "float16", "int32", "uint32", "float32", "int64", "float64"]

shapes = st.lists(st.integers(0, 9), max_size=3).map(tuple)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """Two safetensors files that share some tensors, changed a little, a lot, or in shape."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    old: dict[str, Any] = {}
    new: dict[str, Any] = {}
    for i in range(draw(st.integers(0, 6))):
        name = f"tensor {i} é"
        dtype, shape = draw(st.sampled_from(DTYPES)), draw(shapes)
        kind = draw(st.sampled_from(["same", "step", "random", "shape", "dtype", "added", "removed"]))
        value = _random(rng, dtype, shape)
        if kind != "added":
            old[name] = value
        if kind == "removed":
            continue
        new[name] = value
        if kind == "step" and value.size:
            moved = value.copy()
            raw = moved.reshape(-1).view(np.uint8)
            if dtype != "bool":
                raw[:: draw(st.integers(1, 5))] += np.uint8(draw(st.integers(0, 255)))
            new[name] = moved
        elif kind == "random":
            new[name] = _random(rng, dtype, shape)
        elif kind == "shape":
            new[name] = _random(rng, dtype, (*shape, 2))
        elif kind == "dtype":
            new[name] = _random(rng, draw(st.sampled_from(DTYPES)), shape)
    metadata = {"note": draw(st.text(max_size=4))} if draw(st.booleans()) and new else None
    return save(old), save(new, metadata=metadata)


def _random(rng: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> Any:
    if dtype == "bool":
        return np.asarray(rng.random(shape) < 0.5)
    items = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    return np.frombuffer(rng.bytes(items), dtype).reshape(shape)


@given(pairs())
@settings(max_examples=150, deadline=None)
def test_tensor_delta_gives_the_new_file_bit_for_bit(pair: tuple[bytes, bytes]) -> None:
    base, new = pair
    coded = delta.encode_tensors(new, base)
    assert coded is not None
    assert delta.decode_tensors(coded, base, len(new)) == new


@given(st.binary(max_size=400), st.binary(max_size=400))
@settings(max_examples=60, deadline=None)
def test_patch_and_compression_give_the_new_file_bit_for_bit(base: bytes, new: bytes) -> None:
    assert delta.decode_patch(delta.encode_patch(new, base), base, len(new)) == new
    assert coding.decompress(coding.compress(new), len(new)) == new
    assert coding.decompress(coding.compress(new, dictionary=base), len(new), dictionary=base) == new


@given(pairs(), st.data())
@settings(max_examples=150, deadline=None)
def test_damaged_tensor_delta_is_refused_or_has_the_right_length(
    pair: tuple[bytes, bytes], data: st.DataObject
) -> None:
    base, new = pair
    coded = bytearray(delta.encode_tensors(new, base) or b"")
    at = data.draw(st.integers(0, len(coded) - 1))
    if data.draw(st.booleans()):
        del coded[at:]
    else:
        coded[at] ^= data.draw(st.integers(1, 255))
    try:
        made = delta.decode_tensors(bytes(coded), base, len(new))
    except PackageError:
        return
    assert len(made) == len(new)


def test_a_fifth_of_the_weights_moved_by_one_costs_an_eighth_of_the_file() -> None:
    rng = np.random.default_rng(0)
    old = np.clip(np.round(rng.normal(0, 25, 30_000)), -126, 126).astype(np.int8)
    moved = rng.random(30_000) < 0.2
    new = old + np.where(moved, rng.choice([-1, 1], 30_000), 0).astype(np.int8)
    coded = delta.encode_tensors(save({"w": new}), save({"w": old}))
    assert coded is not None
    assert len(coded) < 30_000 / 8


def test_unchanged_tensors_cost_one_byte_each_at_most() -> None:
    rng = np.random.default_rng(0)
    old = {f"t{i}": rng.integers(-100, 100, 500).astype(np.int8) for i in range(20)}
    coded = delta.encode_tensors(save({**old, "t7": old["t7"][::-1].copy()}), save(old))
    assert coded is not None
    assert len(coded) < 500 + 60


def _file(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _row(start: int, end: int, shape: list[Any], dtype: str = "I8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    "file",
    [
        b"",
        b"\xff" * 8,
        struct.pack("<Q", 1 << 63),
        _file(b"not json"),
        _file(b"[" * 50_000),
        _file([]),
        _file({"a": 1}),
        _file({"a": _row(0, 4, [4])}),
        _file({"a": _row(0, 4, [4])}, b"12345"),
        _file({"a": _row(0, 4, [5])}, b"1234"),
        _file({"a": _row(-4, 0, [4])}),
        _file({"a": _row(0, 4, [4], "I4")}, b"1234"),
        _file({"a": _row(0, 4, [True, 4])}, b"1234"),
        _file({"a": _row(0, 4, [1 << 61, 1 << 61])}, b"1234"),
        _file({"a": _row(0, 4, [1] * 40)}, b"1234"),
        _file({"a": _row(0, 4, [4]), "b": _row(2, 6, [4])}, b"123456"),
        _file({"a": _row(0, 2, [2]), "b": _row(3, 5, [2])}, b"12345"),
        _file(b'{"a":{"dtype":"I8","shape":[0],"data_offsets":[0,0]},"a":{}}'),
    ],
)
def test_hostile_safetensors_header_is_refused(file: bytes) -> None:
    with pytest.raises(LayoutError):
        parse_layout(file)
    good = save({"a": np.zeros(4, np.int8)})
    assert delta.encode_tensors(file, good) is None
    assert delta.encode_tensors(good, file) is None
    coded = delta.encode_tensors(good, good)
    assert coded is not None
    with pytest.raises(PackageError):
        delta.decode_tensors(coded, file, len(good))


def test_decompression_bomb_stops_at_the_stated_length() -> None:
    bomb = coding.compress(bytes(1 << 28))
    assert len(bomb) < 1 << 16
    with pytest.raises(PackageError, match="longer than"):
        coding.decompress(bomb, 1000)


def test_patch_for_another_length_or_base_is_refused_before_it_is_applied() -> None:
    base, new = bytes(1000), bytes(5000)
    patch = delta.encode_patch(new, base)
    for wrong_base, size in [(base, 4999), (base + b"x", 5000)]:
        with pytest.raises(PackageError, match="turns 1000 bytes into 5000"):
            delta.decode_patch(patch, wrong_base, size)
    for cut in range(0, len(patch), 3):
        with pytest.raises(PackageError):
            delta.decode_patch(patch[:cut], base, 5000)
    # The plain format has another head.
    with pytest.raises(PackageError):
        delta.decode_patch(hdiffpatch.diff_lite(base, new), base, 5000)
