"""Entropy coding of byte strings: zstd, alone or with the base file as its dictionary, and bounded decoding.

Frames carry neither magic number, length nor checksum: the package knows all three, and small packages are
the rule.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import IO, Protocol, cast

import zstandard

from edgewright_ota.errors import PackageError

LEVEL = 19
MAX_WINDOW_LOG = 27
MAX_DICTIONARY_BYTES = 64 << 20
MAX_VARINT_BYTES = 10

_STEP_BYTES = 1 << 16
_MAGICLESS = zstandard.FORMAT_ZSTD1_MAGICLESS


class Source(Protocol):
    """Anything that gives bytes: an open file, or one entry of a package."""

    def read(self, size: int = -1, /) -> bytes:
        """Up to `size` bytes; empty at the end."""
        ...


def compress(data: bytes, *, dictionary: bytes = b"") -> bytes:
    """One zstd frame at level 19.

    Args:
        data: What to compress.
        dictionary: Bytes that the decoder will have too.
    """
    return compressor(len(data), dictionary=dictionary).compress(data)


def compressor(size_bytes: int, *, dictionary: bytes = b"") -> zstandard.ZstdCompressor:
    """A zstd compressor for one frame of about this many bytes."""
    reach = max(size_bytes + len(dictionary), 1)
    parameters = zstandard.ZstdCompressionParameters.from_level(
        LEVEL,
        source_size=reach,
        dict_size=len(dictionary),
        window_log=min(max(reach.bit_length(), 10), MAX_WINDOW_LOG if dictionary else 23),
        format=_MAGICLESS,
        write_content_size=0,
        write_checksum=0,
        write_dict_id=0,
    )
    return zstandard.ZstdCompressor(dict_data=_dictionary(dictionary), compression_params=parameters)


def decompress(data: bytes, size_bytes: int, *, dictionary: bytes = b"") -> bytes:
    """Undoes `compress`; never holds more than `size_bytes` of output and one window.

    Raises:
        PackageError: Not a frame, or it does not give exactly `size_bytes` bytes.
    """
    return b"".join(stream(io.BytesIO(data), size_bytes, dictionary=dictionary))


def stream(source: Source, size_bytes: int, *, dictionary: bytes = b"") -> Iterator[bytes]:
    """Decodes one frame step by step, at most 64 KiB at a time.

    Raises:
        PackageError: Not a frame, or it does not give exactly `size_bytes` bytes.
    """
    decoder = zstandard.ZstdDecompressor(
        dict_data=_dictionary(dictionary), max_window_size=1 << MAX_WINDOW_LOG, format=_MAGICLESS
    )
    done = 0
    try:
        with decoder.stream_reader(cast(IO[bytes], source), closefd=False) as reader:
            # One byte more than wanted is asked for, so that a longer frame shows itself.
            while block := reader.read(min(_STEP_BYTES, size_bytes - done + 1)):
                done += len(block)
                if done > size_bytes:
                    raise PackageError(f"a compressed part is longer than the {size_bytes} bytes it may have")
                yield block
    except zstandard.ZstdError as error:
        raise PackageError(f"a compressed part is damaged: {error}") from None
    if done != size_bytes:
        raise PackageError(f"a compressed part gives {done} bytes instead of {size_bytes}")


def put_varint(value: int) -> bytes:
    """An unsigned integer, 7 bits a byte, low bits first."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def get_varint(data: bytes, at: int) -> tuple[int, int]:
    """The integer at an offset, and the offset after it.

    Raises:
        PackageError: It runs past the end or is too long.
    """
    value = 0
    for i in range(MAX_VARINT_BYTES):
        if at + i >= len(data):
            raise PackageError("ends in the middle of a number")
        byte = data[at + i]
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return value, at + i + 1
    raise PackageError("holds a number that is too long")


def _dictionary(data: bytes) -> zstandard.ZstdCompressionDict | None:
    if not data:
        return None
    return zstandard.ZstdCompressionDict(data, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
