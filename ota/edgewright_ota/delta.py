"""Deltas between two versions of one file.

For safetensors, tensor by tensor: those that did not change cost nothing; int8 weights travel as differences,
split into where, which way and how far; wider numbers as byte planes of their difference or exclusive or. For
anything else, hdiffpatch. Both are exact: they give the new file bit for bit, its header and layout included.
The layout of the coded bytes is in docs/release-format.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import hdiffpatch
import numpy as np
import numpy.typing as npt

from edgewright_ota import coding
from edgewright_ota.errors import PackageError
from edgewright_ota.tensors import Layout, LayoutError, Tensor, parse_layout

MAX_TENSOR_FILE_BYTES = 256 << 20
MAX_PATCH_FILE_BYTES = 64 << 20

FULL, UNCHANGED, SUBTRACT, XOR = range(4)
_BYTES, _SPLIT = range(2)  # the two forms of one-byte differences
_WIDTHS = (2, 4, 8)
_SAMPLE = 1 << 20

Bytes = npt.NDArray[np.uint8]


def encode_tensors(new: bytes, base: bytes) -> bytes | None:
    """A tensor delta from one safetensors file to another.

    Args:
        new: The file to rebuild.
        base: The file the device has.

    Returns:
        The coded bytes, or None when either is not a plain safetensors file.
    """
    try:
        layout, base_layout = parse_layout(new), parse_layout(base)
    except LayoutError:
        return None
    modes = bytearray()
    parts = _Parts()
    for tensor in layout.tensors:
        old = _counterpart(tensor, base_layout)
        value = _view(new, layout, tensor)
        mode = FULL if old is None else _choose(value, _view(base, base_layout, old), tensor.item_bytes)
        modes.append(mode)
        if mode == FULL:
            parts.full.append(value)
        elif mode != UNCHANGED and old is not None:
            parts.add(mode, tensor.item_bytes, value, _view(base, base_layout, old))
    same = layout.header == base_layout.header
    head = bytes([same]) + (b"" if same else coding.put_varint(len(layout.header)) + layout.header) + modes
    out = bytearray(coding.put_varint(len(head)))
    for block, dictionary in [(head, base_layout.header), *((b, b"") for b in parts.blocks())]:
        packed = coding.compress(block, dictionary=dictionary) if block else b""
        squeezed = len(packed) < len(block)
        body = packed if squeezed else block
        out += coding.put_varint(len(body) << 1 | squeezed) + body
    return bytes(out)


def decode_tensors(coded: bytes, base: bytes, size_bytes: int) -> bytes:
    """Undoes `encode_tensors`.

    Args:
        coded: What it gave; untrusted.
        base: The same base file.
        size_bytes: Length the result must have; nothing larger is ever allocated.

    Raises:
        PackageError: The coded bytes or the base do not fit.
    """
    try:
        base_layout = parse_layout(base)
    except LayoutError as error:
        raise PackageError(f"a tensor delta needs a safetensors file as its base: {error}") from None
    reader = _Reader(coded)
    limit = size_bytes + len(base_layout.header) + (1 << 20)
    head = reader.block(reader.number(limit), dictionary=base_layout.header)
    header, modes = _split_head(head, base_layout)
    try:
        layout = parse_layout(header, size_bytes=size_bytes)
    except LayoutError as error:
        raise PackageError(f"a tensor delta describes no safetensors file: {error}") from None
    if len(modes) != len(layout.tensors) or layout.header != header:
        raise PackageError("a tensor delta lists other tensors than its header")
    out = np.empty(size_bytes, np.uint8)
    out[: len(header)] = np.frombuffer(header, np.uint8)
    wanted = [(m, t, _base_view(m, t, base, base_layout)) for m, t in zip(modes, layout.tensors, strict=True)]
    full = _Cursor(reader.array(sum(t.size_bytes for m, t, _ in wanted if m == FULL)))
    narrow_bytes = sum(t.size_bytes for m, t, _ in wanted if m > UNCHANGED and t.item_bytes == 1)
    narrow = _Cursor(reader.narrow(narrow_bytes))
    wide = {
        (mode, width): _Cursor(
            reader.planes(
                sum(t.size_bytes for m, t, _ in wanted if m == mode and t.item_bytes == width), width
            )
        )
        for mode in (SUBTRACT, XOR)
        for width in _WIDTHS
    }
    reader.end()
    for mode, tensor, old in wanted:
        place = slice(layout.data + tensor.start, layout.data + tensor.end)
        if mode == UNCHANGED:
            out[place] = old
            continue
        if mode == FULL:
            out[place] = full.take(tensor.size_bytes)
            continue
        group = narrow if tensor.item_bytes == 1 else wide[mode, tensor.item_bytes]
        out[place] = _undo(mode, tensor.item_bytes, group.take(tensor.size_bytes), old)
    return out.tobytes()


def encode_patch(new: bytes, base: bytes) -> bytes:
    """An hdiffpatch difference, its parts in zstd."""
    config = hdiffpatch.ZStdConfig(level=coding.LEVEL, window=22)
    return bytes(hdiffpatch.diff(base, new, compression=config, validate=False))


def decode_patch(coded: bytes, base: bytes, size_bytes: int) -> bytes:
    """Undoes `encode_patch`.

    Raises:
        PackageError: The patch is damaged, or not for this base, or not for a file of `size_bytes` bytes.
    """
    new_bytes, base_bytes = _patch_sizes(coded)
    if (new_bytes, base_bytes) != (size_bytes, len(base)):
        raise PackageError(
            f"a patch turns {base_bytes} bytes into {new_bytes}; here it is {len(base)} into {size_bytes}"
        )
    try:
        return bytes(hdiffpatch.apply(base, coded))
    except (hdiffpatch.HDiffPatchError, MemoryError) as error:
        raise PackageError(f"a patch is damaged: {error}") from None


class _Parts:
    """Collects the tensors' coded parts, so that like bytes lie together."""

    def __init__(self) -> None:
        self.full: list[Bytes] = []
        self.narrow: list[Bytes] = []
        self.wide: dict[tuple[int, int], list[Bytes]] = {(m, w): [] for m in (SUBTRACT, XOR) for w in _WIDTHS}

    def add(self, mode: int, item_bytes: int, value: Bytes, old: Bytes) -> None:
        difference = _difference(mode, item_bytes, value, old)
        (self.narrow if item_bytes == 1 else self.wide[mode, item_bytes]).append(difference)

    def blocks(self) -> list[bytes]:
        """The blocks in the order the decoder reads them; groups that are empty have none."""
        full, narrow = _join(self.full), _join(self.narrow)
        out = [full.tobytes()] if full.size else []
        if narrow.size:
            forms: list[list[bytes]] = [[bytes([_BYTES]), narrow.tobytes()], _split(narrow)]
            out += min(forms, key=_packed_bytes)
        for (_, width), values in self.wide.items():
            planes = _join(values).reshape(-1, width)
            out += [planes[:, i].tobytes() for i in range(width)] if planes.size else []
        return out


class _Cursor:
    """Hands out an array from its beginning on."""

    def __init__(self, data: Bytes) -> None:
        self._data = data

    def take(self, size: int) -> Bytes:
        part, self._data = self._data[:size], self._data[size:]
        return part


class _Reader:
    """Reads the blocks of a tensor delta, each of a length known before it is decoded."""

    def __init__(self, coded: bytes) -> None:
        self._coded = coded
        self._at = 0

    def number(self, limit: int) -> int:
        value, self._at = coding.get_varint(self._coded, self._at)
        if value > limit:
            raise PackageError("a tensor delta declares more than its file can hold")
        return value

    def block(self, size_bytes: int, *, dictionary: bytes = b"") -> bytes:
        tag, self._at = coding.get_varint(self._coded, self._at)
        body = self._coded[self._at : self._at + (tag >> 1)]
        self._at += tag >> 1
        if len(body) != tag >> 1:
            raise PackageError("a tensor delta ends too early")
        if tag & 1:
            return coding.decompress(body, size_bytes, dictionary=dictionary)
        if len(body) != size_bytes:
            raise PackageError("a part of a tensor delta has the wrong length")
        return body

    def array(self, size_bytes: int) -> Bytes:
        return np.frombuffer(self.block(size_bytes) if size_bytes else b"", np.uint8)

    def narrow(self, size_bytes: int) -> Bytes:
        if not size_bytes:
            return np.empty(0, np.uint8)
        form = self.block(1)[0]
        if form == _BYTES:
            return self.array(size_bytes)
        if form != _SPLIT:
            raise PackageError("a tensor delta has a form this version does not know")
        moved = np.unpackbits(self.array(-(-size_bytes // 8)), count=size_bytes).astype(np.bool_)
        count = int(np.count_nonzero(moved))
        down = np.unpackbits(self.array(-(-count // 8)), count=count).astype(np.bool_)
        distance = self.array(count) + np.uint8(1)
        out = np.zeros(size_bytes, np.uint8)
        out[moved] = np.where(down, np.uint8(0) - distance, distance)
        return out

    def planes(self, size_bytes: int, width: int) -> Bytes:
        if not size_bytes:
            return np.empty(0, np.uint8)
        return np.stack([self.array(size_bytes // width) for _ in range(width)], axis=1).reshape(-1)

    def end(self) -> None:
        if self._at != len(self._coded):
            raise PackageError("a tensor delta has bytes after its end")


def _counterpart(tensor: Tensor, base: Layout) -> Tensor | None:
    old = base.by_name.get(tensor.name)
    return old if old is not None and (old.dtype, old.shape) == (tensor.dtype, tensor.shape) else None


def _view(data: bytes, layout: Layout, tensor: Tensor) -> Bytes:
    return np.frombuffer(data, np.uint8, tensor.size_bytes, layout.data + tensor.start)


def _base_view(mode: int, tensor: Tensor, base: bytes, layout: Layout) -> Bytes:
    if mode == FULL:
        return np.empty(0, np.uint8)
    old = _counterpart(tensor, layout)
    if mode > XOR or old is None or (mode == XOR and tensor.item_bytes == 1):
        raise PackageError(f"a tensor delta changes {tensor.name[:80]!r}, in a way this version cannot")
    return _view(base, layout, old)


def _split_head(head: bytes, base: Layout) -> tuple[bytes, bytes]:
    """The new file's header (with its length field) and the tensors' modes."""
    if head[:1] == b"\x01":
        return base.header, head[1:]
    if head[:1] != b"\x00":
        raise PackageError("a tensor delta has no valid head")
    size, at = coding.get_varint(head, 1)
    if at + size > len(head):
        raise PackageError("a tensor delta's header ends too early")
    return head[at : at + size], head[at + size :]


def _choose(value: Bytes, old: Bytes, item_bytes: int) -> int:
    """The mode that costs least, by order-0 entropy of each byte plane (of the first MiB)."""
    if np.array_equal(value, old):
        return UNCHANGED
    value, old = value[:_SAMPLE], old[:_SAMPLE]
    modes = (SUBTRACT,) if item_bytes == 1 else (SUBTRACT, XOR)
    costs = {m: _entropy_bits(_difference(m, item_bytes, value, old), item_bytes) for m in modes}
    costs[FULL] = _entropy_bits(value, item_bytes)
    return min(costs, key=costs.__getitem__)


def _entropy_bits(data: Bytes, item_bytes: int) -> float:
    bits = 0.0
    for i in range(item_bytes):
        counts = np.bincount(data[i::item_bytes], minlength=1)
        counts = counts[counts > 0]
        bits += float(np.sum(counts * -np.log2(counts / counts.sum())))
    return bits


def _difference(mode: int, item_bytes: int, value: Bytes, old: Bytes) -> Bytes:
    kind = np.dtype(f"<u{item_bytes}")
    new_items, old_items = value.view(kind), old.view(kind)
    if mode == XOR:
        coded = new_items ^ old_items
    else:
        gap = new_items - old_items  # wraps, and so does the way back
        coded = gap if item_bytes == 1 else _zigzag(gap)
    return np.asarray(coded).view(np.uint8)


def _undo(mode: int, item_bytes: int, part: Bytes, old: Bytes) -> Bytes:
    kind = np.dtype(f"<u{item_bytes}")
    coded, old_items = part.view(kind), old.view(kind)
    if mode == XOR:
        value = old_items ^ coded
    else:
        one = kind.type(1)
        value = old_items + (coded if item_bytes == 1 else (coded >> one) ^ (kind.type(0) - (coded & one)))
    return np.asarray(value).view(np.uint8)


def _zigzag(gap: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Small differences of either sign become small numbers, so that the high planes are zero."""
    sign = gap.view(f"<i{gap.itemsize}") >> (8 * gap.itemsize - 1)
    return np.asarray((gap << gap.dtype.type(1)) ^ sign.view(gap.dtype))


def _split(difference: Bytes) -> list[bytes]:
    """One-byte differences as: which moved, which of those went down, and how far beyond one step."""
    moved = difference != 0
    steps = difference[moved].view(np.int8)
    down = steps < 0
    distance = np.where(down, np.uint8(0) - steps.view(np.uint8), steps.view(np.uint8)) - np.uint8(1)
    blocks = [np.packbits(moved), np.packbits(down), distance]
    return [bytes([_SPLIT]), *(b.tobytes() for b in blocks if b.size)]


def _packed_bytes(blocks: Iterable[bytes]) -> int:
    return sum(min(len(b), len(coding.compress(b))) for b in blocks)


def _join(arrays: list[Bytes]) -> Bytes:
    return np.concatenate(arrays) if arrays else np.empty(0, np.uint8)


def _patch_sizes(coded: bytes) -> tuple[int, int]:
    """The sizes an HDIFF13 patch declares: of the new file, then of the old one."""
    end = coded.find(b"\0", 0, 64)
    if not coded.startswith(b"HDIFF13&") or end < 0:
        raise PackageError("a patch has no valid head")
    at = end + 1
    sizes = []
    for _ in range(2):
        value = 0
        for _ in range(coding.MAX_VARINT_BYTES):
            if at >= len(coded):
                raise PackageError("a patch ends in its head")
            byte = coded[at]
            at += 1
            value = value << 7 | byte & 0x7F
            if byte < 0x80:
                break
        else:
            raise PackageError("a patch holds a number that is too long")
        sizes.append(value)
    return sizes[0], sizes[1]
