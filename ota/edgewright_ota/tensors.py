"""Where the tensors of a safetensors file lie; its header is untrusted."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

MAX_HEADER_BYTES = 16 << 20
MAX_TENSORS = 65_536
MAX_RANK = 32

_LENGTH = struct.Struct("<Q")
_ITEM_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "U16": 2,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "U32": 4,
    "I32": 4,
    "F32": 4,
    "U64": 8,
    "I64": 8,
    "F64": 8,
}


class LayoutError(Exception):
    """The bytes are not a safetensors file of the plain kind; the caller falls back to another method."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One tensor: its name, safetensors dtype, shape, and its bytes [start, end) within the data."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def size_bytes(self) -> int:
        """Bytes it takes."""
        return self.end - self.start

    @property
    def item_bytes(self) -> int:
        """Bytes of one element."""
        return _ITEM_BYTES[self.dtype]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A file's header with its length field, and its tensors in the order of their bytes."""

    header: bytes
    tensors: tuple[Tensor, ...]
    by_name: Mapping[str, Tensor] = field(repr=False)

    @property
    def data(self) -> int:
        """Offset of the first tensor byte in the file."""
        return len(self.header)


def parse_layout(data: bytes, *, size_bytes: int | None = None) -> Layout:
    """Reads the header of a safetensors file.

    Args:
        data: The file, or at least its header.
        size_bytes: Length of the file; None if `data` is all of it.

    Raises:
        LayoutError: Not such a file, over a cap, or with gaps or overlaps between tensors.
    """
    size_bytes = len(data) if size_bytes is None else size_bytes
    if len(data) < _LENGTH.size:
        raise LayoutError("shorter than its length field")
    length = _LENGTH.unpack_from(data)[0]
    end = _LENGTH.size + length
    if length > MAX_HEADER_BYTES or end > len(data) or end > size_bytes:
        raise LayoutError("its header does not fit")
    try:
        body = json.loads(data[_LENGTH.size : end], object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise LayoutError(f"its header is not JSON: {error}") from None
    if not isinstance(body, dict) or len(body) > MAX_TENSORS + 1:
        raise LayoutError("its header is not a table of tensors")
    tensors = [_tensor(name, row) for name, row in body.items() if name != "__metadata__"]
    tensors.sort(key=lambda t: (t.start, t.end))
    at = 0
    for tensor in tensors:
        if tensor.start != at:
            raise LayoutError(f"{tensor.name!r} does not begin where the tensor before it ends")
        at = tensor.end
    if end + at != size_bytes:
        raise LayoutError("its tensors do not fill it")
    return Layout(header=data[:end], tensors=tuple(tensors), by_name={t.name: t for t in tensors})


def _tensor(name: str, row: object) -> Tensor:
    if not isinstance(row, dict) or set(row) != {"dtype", "shape", "data_offsets"}:
        raise LayoutError(f"{name!r} lacks dtype, shape or data_offsets")
    dtype, shape, offsets = row["dtype"], row["shape"], row["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        raise LayoutError(f"{name!r} has the unknown dtype {dtype!r}")
    if not _sizes(shape) or not _sizes(offsets) or len(shape) > MAX_RANK or len(offsets) != 2:
        raise LayoutError(f"{name!r} has no valid shape or offsets")
    wanted = _ITEM_BYTES[dtype]
    for size in shape:
        wanted *= size
        if wanted >> 63:
            raise LayoutError(f"{name!r} is too large")
    start, end = offsets
    if end - start != wanted:
        raise LayoutError(f"{name!r} has another length than its shape")
    return Tensor(name=name, dtype=dtype, shape=tuple(shape), start=start, end=end)


def _sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(x) is int and 0 <= x < 1 << 62 for x in value)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    body = dict(pairs)
    if len(body) != len(pairs):
        raise ValueError("a name occurs twice")
    return body
