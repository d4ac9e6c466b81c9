"""golden.npz: inputs and what the artifact gives for them, replayed before a device confirms a release."""

from __future__ import annotations

import io
import math
import re
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edgewright_device.errors import ArtifactError
from edgewright_device.manifest import GOLDEN

MAX_GOLDEN_BYTES = 64 << 20

_ENCRYPTED = 1  # bit of a zip member's flags
_KIND = re.compile(r"(?:input|output)(?:-[1-9][0-9]{0,6})?|value")
_NPY_HEADER = re.compile(
    rb"\{'descr': '<(f4|i8)', 'fortran_order': False, 'shape': \(((?:\d{1,10},? ?){1,8})\), \} *\n"
)

Arrays = dict[str, npt.NDArray[Any]]


def encode_golden(
    inputs: Mapping[str, npt.NDArray[Any]],
    outputs: Mapping[str, npt.NDArray[Any]],
    *,
    values: Mapping[str, npt.NDArray[Any]] | None = None,
    shorter: Mapping[int, tuple[Mapping[str, npt.NDArray[Any]], Mapping[str, npt.NDArray[Any]]]]
    | None = None,
) -> bytes:
    """golden.npz with the keys `KIND.NAME`; the same arrays give the same bytes.

    Args:
        inputs: By name, float32 or int64, batch first.
        outputs: The same, float32.
        values: What passes between parts, the same, float32.
        shorter: Inputs and outputs of other lengths, by length.
    """
    kinds = {"input": inputs, "output": outputs, "value": values or {}}
    for length, (taken, given) in sorted((shorter or {}).items()):
        kinds |= {f"input-{length}": taken, f"output-{length}": given}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for kind, arrays in kinds.items():
            for name, value in arrays.items():
                member = io.BytesIO()
                np.lib.format.write_array(member, np.ascontiguousarray(value), allow_pickle=False)
                info = zipfile.ZipInfo(f"{kind}.{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
                archive.writestr(info, member.getvalue())
    return out.getvalue()


def decode_golden(data: bytes, *, where: str = GOLDEN) -> dict[str, Arrays]:
    """What is in golden.npz, by kind: "input" and "output", "value", "input-32" and "output-32", ...

    Raises:
        ArtifactError: Damaged, without inputs or outputs, or it would unpack to more than 64 MiB.
    """
    kinds: dict[str, Arrays] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            if sum(m.file_size for m in members) > MAX_GOLDEN_BYTES:
                raise ArtifactError(f"{where}: unpacks to more than {MAX_GOLDEN_BYTES} bytes")
            for member in members:
                if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & _ENCRYPTED:
                    raise ValueError(f"{member.filename} is packed or encrypted; members are stored")
                kind, _, name = member.filename.removesuffix(".npy").partition(".")
                if not _KIND.fullmatch(kind):
                    raise ValueError(f"{kind!r:.40} is no kind of member")
                kinds.setdefault(kind, {})[name] = _array(archive.read(member))
    except (zipfile.BadZipFile, ValueError, KeyError, EOFError, OSError, NotImplementedError) as error:
        raise ArtifactError(f"{where}: not readable as golden vectors ({error})") from None
    if not kinds.keys() >= {"input", "output"}:
        raise ArtifactError(f"{where}: holds no inputs or no outputs")
    return kinds


def _array(data: bytes) -> npt.NDArray[Any]:
    """A `.npy` member: its own header is not trusted to say how much memory to take."""
    stream = io.BytesIO(data)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("a .npy header that is not of version 1.0")
    header = _NPY_HEADER.fullmatch(stream.read(int.from_bytes(stream.read(2), "little")))
    if header is None:
        raise ValueError("a .npy header that is not of a float32 or int64 array in C order")
    dtype = np.dtype(f"<{header[1].decode()}")
    shape = tuple(int(n) for n in header[2].split(b",") if n.strip())
    if not shape or math.prod(shape) * dtype.itemsize != len(data) - stream.tell():
        raise ValueError(f"an array of shape {shape} in {len(data)} bytes")
    return np.frombuffer(data, dtype, offset=stream.tell()).reshape(shape).copy()
