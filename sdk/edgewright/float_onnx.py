"""Float ONNX: a model written as a file that any runtime reads, optimized on request and proven equal."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt
import onnx

from edgewright.attention_forms import ATTENTION_OPSET, fuse_attention
from edgewright.errors import ExportError
from edgewright.graph import float_graph
from edgewright.normalform import OPSET, normalize
from edgewright.samples import as_tuple, drawn_samples
from edgewright.wiring import check_ports

if TYPE_CHECKING:
    from torch import nn

    from edgewright.verification_report import VerificationReport

# Two float32 graphs of one function differ by the order of their sums: some 120 dB below their outputs.
EQUAL_DB = 80.0
EQUAL_CASES = 200
EQUAL_FLIPS = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxFile:
    """A float32 ONNX file that was written.

    Attributes:
        path: Where.
        nodes: Operators in the graph.
        size_bytes: Of the file.
        nodes_before: Operators before optimization.
        attentions: Attentions that became one node each.
        report: Verification of the file against the graph before; None where it was not optimized.
    """

    path: Path
    nodes: int
    size_bytes: int
    nodes_before: int
    attentions: int = 0
    report: VerificationReport | None = None


def export_onnx(
    model: nn.Module | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    example_inputs: Any = None,
    optimize: bool = False,
    opset: int = ATTENTION_OPSET,
    data: Mapping[str, npt.ArrayLike] | npt.ArrayLike | None = None,
) -> OnnxFile:
    """Writes a model as float32 ONNX.

    Args:
        model: A module, or the path of a `.pt2` or `.onnx` file.
        out: The file to write.
        example_inputs: For a module: the arguments of one call.
        optimize: Simplify the graph (onnxslim, then one form for equal things), and write each attention as
            one node. `verify` compares the result with the graph before; what differs is not written.
        opset: For `optimize`, the latest ONNX opset that may be used. Attention in one node needs 23; a graph
            without any stays in 20.
        data: For `optimize`, real samples to compare on: by input name, or one array; drawn ones if left out.

    Raises:
        ExportError: The model cannot be read or traced, or the optimized graph is not equal.
        ValueError: An opset below 20.
    """
    if opset < OPSET:
        raise ValueError(f"opset {opset}: the least is {OPSET}")
    source = Path(model) if isinstance(model, str | os.PathLike) else model
    path = Path(out)
    if isinstance(source, Path) and path.exists() and source.exists() and path.samefile(source):
        raise ExportError(f"{path}: is the model itself, which would be lost; write it to another file")
    before = float_graph(source, None if example_inputs is None else as_tuple(example_inputs), slim=False)
    graph, attentions, report = before, 0, None
    if optimize:
        graph = normalize(before)
        if opset >= ATTENTION_OPSET:
            graph, attentions = fuse_attention(graph)
        report = _proof(before, graph, data)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_bytes(graph.SerializeToString(deterministic=True))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return OnnxFile(
        path=path,
        nodes=len(graph.graph.node),
        size_bytes=path.stat().st_size,
        nodes_before=len(before.graph.node),
        attentions=attentions,
        report=report,
    )


def _proof(
    before: onnx.ModelProto,
    after: onnx.ModelProto,
    data: Mapping[str, npt.ArrayLike] | npt.ArrayLike | None,
) -> VerificationReport:
    """The verification of one graph against another, which passed."""
    from edgewright.verification import verify

    check_ports(before)
    with tempfile.TemporaryDirectory(prefix="edgewright-") as folder:
        files = [Path(folder) / f"{name}.onnx" for name in ("before", "after")]
        for file, graph in zip(files, (before, after), strict=True):
            file.write_bytes(graph.SerializeToString(deterministic=True))
        report = verify(
            files[1],
            reference=files[0],
            cases=EQUAL_CASES,
            data=drawn_samples(before, {}) if data is None else data,
            min_sqnr_db=EQUAL_DB,
            max_flip_rate=EQUAL_FLIPS,
        )
    if not report.passed:
        found = "; ".join(f"{c.what}: {c.value:.4g} {c.unit}" for c in report.checks if c.verdict != "passed")
        raise ExportError(f"the optimized graph is not equal ({found}); nothing was written")
    return report
