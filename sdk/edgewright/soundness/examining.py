"""Examination: everything about an artifact that outputs alone do not show, as checks and findings.

The error of an artifact comes about in stages, and each has a floor of its own, far below that of the whole:
its operators against the float model's, which must be the same (local.py); its weights against those, which
rounding alone may move (weights.py); its grids against the values of real samples (grids.py); its program
against what its graph lowers to (program.py); and its files against one another (files.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx

from edgewright.checks import Check, at_most
from edgewright.errors import ExportError
from edgewright.graph import quantizes
from edgewright.progress import OnProgress, Progress
from edgewright.soundness import grids
from edgewright.soundness.bare import Bare, bare, layer_axis
from edgewright.soundness.biases import Bias, wrong_biases
from edgewright.soundness.files import file_checks
from edgewright.soundness.finding import Finding
from edgewright.soundness.folding import fold
from edgewright.soundness.local import Local, float_values, locals_of
from edgewright.soundness.pairing import Pairing
from edgewright.soundness.prepared import prepared
from edgewright.soundness.program import program_check
from edgewright.soundness.reference import normal, reference_graph
from edgewright.soundness.weights import MOVED, ROUNDED, Residual, residual
from edgewright.subject import Subject
from edgewright.weights import noted_integers

if TYPE_CHECKING:
    from torch import nn

Array = npt.NDArray[Any]

SAME_DB = 60.0
"""What two float32 engines give of one operator on one input agrees to 100 dB and more."""
ROUNDED_DB, ROUNDED_DB_OF_FOUR = 25.0, 10.0
"""A layer whose weights have no counterpart is held to what rounding them costs at most."""
INCOMPARABLE = 0.3
"""Of the operators: with more that differ, the reference is another model, or names mean something else."""
OF_FACTORS = 0.2  # steps: factors that are read off rounded weights move them so far
NAMED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """What an examination found.

    Attributes:
        checks: Each with its verdict.
        findings: What is wrong, each with its place.
    """

    checks: tuple[Check, ...] = ()
    findings: tuple[Finding, ...] = ()


def examine(
    subject: Subject,
    reference: nn.Module | Path,
    samples: Mapping[str, Array],
    report: OnProgress,
) -> Examination:
    """Looks into an artifact, or a QDQ file.

    Args:
        subject: What is verified.
        reference: The float model it was made from.
        samples: Real ones, by the subject's input names, (samples, ...); 64 are used at most.
        report: Told of each step, and of what could not be compared.
    """
    if not quantizes(subject.graph):
        return Examination()
    report(Progress(step="verify: examine", done=0, total=3))
    checks: list[Check] = []
    if subject.artifact is not None:
        checks += file_checks(subject.artifact, subject.graph)
        if (program := program_check(subject.artifact, subject.graph)) is not None:
            checks.append(program)
    report(Progress(step="verify: examine", done=1, total=3))
    found = bare(subject.graph)
    findings = [*grids.disagreements(found), *grids.bias_grids(subject.graph)]
    if subject.artifact is not None:
        ports = {
            p.name: (p.minimum, p.maximum)
            for p in (*subject.artifact.inputs, *subject.artifact.outputs)
            if p.dtype == "float32"
        }
        findings += grids.port_misfits(found, ports)
    note = ""
    compared: _Compared | None = None
    try:
        compared = _compare(found, reference, subject, samples)
    except ExportError as error:
        note = f"not compared with the float model layer by layer: {error}"
    if compared is not None and compared.incomparable:
        note = f"not compared with the float model layer by layer: {compared.incomparable}"
    elif compared is not None:
        findings += compared.findings
    checks.append(_check("grids", "grids of activations that are wrong", findings))
    if compared is not None and not compared.incomparable:
        what = f"layers whose weights are not the float model's, rounded (of {compared.constants})"
        checks.append(_check("weights", what, findings))
        what = f"operators that are not the float model's (of {compared.operators})"
        checks.append(_check("operators", what, findings))
    report(Progress(step="verify: examine", done=3, total=3, note=note))
    return Examination(checks=tuple(checks), findings=tuple(findings))


def _check(name: str, what: str, findings: Sequence[Finding]) -> Check:
    own = [f for f in findings if f.check == name]
    if own:
        more = f"; and {len(own) - NAMED} more" if len(own) > NAMED else ""
        what = f"{what}: {'; '.join(map(str, own[:NAMED]))}{more}"
    remedy = f"{own[0].cause[:1].upper()}{own[0].cause[1:]}" if own and own[0].cause else ""
    return at_most(name, what, len(own), 0, "places", remedy=remedy)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Compared:
    findings: list[Finding]
    constants: int = 0
    operators: int = 0
    incomparable: str = ""


def _compare(
    found: Bare, reference: nn.Module | Path, subject: Subject, samples: Mapping[str, Array]
) -> _Compared:
    """Everything that needs the float model."""
    floats, quantized = reference_graph(reference, subject, samples)
    other = found if subject.artifact is not None else normal(found)
    fold(other)
    graph, touched = prepared(floats, other)
    pairing = Pairing(floats=graph, bare=other)
    if not pairing.nodes:
        return _Compared(findings=[], incomparable="none of its operators has a counterpart there")
    values, seen = float_values(pairing, samples)
    own = locals_of(pairing, values)
    four = any(i.most == 7 for i in other.integers.values())
    least = {True: SAME_DB, False: ROUNDED_DB_OF_FOUR if four else ROUNDED_DB}
    wrong = [each for each in own if each.sqnr_db < least[each.exact]]
    if len(wrong) > max(2, INCOMPARABLE * len(own)):
        return _Compared(
            findings=[],
            incomparable=f"{len(wrong)} of {len(own)} operators give something else; is it another model?",
        )
    findings = [_operator(each, least[each.exact], pairing) for each in wrong]
    findings += _weights(pairing, values, touched, subject.graph)
    if not quantized:  # whose values lack the clamps that its grids stood for
        findings += grids.misfits(other, seen)
    counted = [n for n in pairing.constants if n in other.integers]
    return _Compared(findings=findings, constants=len(counted), operators=len(own))


def _operator(each: Local, least: float, pairing: Pairing) -> Finding:
    return Finding(
        check="operators",
        place=f"{each.operator} giving {each.value!r}",
        found=f"fed with the float model's values, it gives its result to {each.sqnr_db:.3g} dB; "
        f"{least:g} are the least",
        cause=_difference(each.value, pairing),
    )


def _difference(value: str, pairing: Pairing) -> str:
    """In what a node is not the float model's, as far as the graphs say."""
    ours, theirs = pairing.floats.producers(), pairing.bare.graph.producers()
    mine, their = ours.get(pairing.values[value]), theirs.get(value)
    if mine is None or their is None:
        return ""
    if mine.op_type != their.op_type:
        return f"it is {their.op_type}, where the float model has {mine.op_type}"
    here = {a.name: onnx.helper.get_attribute_value(a) for a in mine.attribute}
    there = {a.name: onnx.helper.get_attribute_value(a) for a in their.attribute}
    for name in sorted({*here, *there}):
        if here.get(name) != there.get(name):
            return f"its attribute {name!r} is {there.get(name)}, where the float model has {here.get(name)}"
    reads = [pairing.values.get(n, n) for n in their.input if n in pairing.values]
    wanted = [n for n in mine.input if n in pairing.values.values()]
    if reads != wanted:
        return f"it reads {', '.join(reads)}, where the float model reads {', '.join(wanted)}"
    for a, b in zip(mine.input, their.input, strict=False):
        one, two = pairing.floats.constants.get(a), pairing.bare.graph.constants.get(b)
        if one is None or two is None or b in pairing.bare.integers:
            continue
        if one.shape != two.shape or not np.allclose(one, two, rtol=1e-4, atol=1e-6):
            return f"its constant {b!r} is not the float model's {a!r}"
    return "what it reads, or the operators between, are not those of the float model"


def _weights(
    pairing: Pairing, values: Mapping[str, Array], touched: frozenset[str], model: onnx.ModelProto
) -> list[Finding]:
    """Integers of weights and biases that are not the float model's, rounded."""
    readers, known = pairing.bare.graph.readers(), pairing.bare.integers
    weights: list[tuple[str, Residual, Residual]] = []
    biases: list[Bias] = []
    for name, mine in pairing.constants.items():
        integers = known.get(name)
        if integers is None:
            continue
        wanted, layer = pairing.floats.constants[mine], readers[name][0]
        if wanted.ndim == 1 and integers.most > 1 << 16:
            result = values.get(layer.output[0])
            spread = 0.0 if result is None else float(result.std(dtype=np.float64))
            biases.append(Bias.of(name, wanted, integers, spread, factors=mine in touched))
            continue
        axis = layer_axis(layer) if len(layer.input) > 1 and layer.input[1] == name else integers.axis
        more = OF_FACTORS if mine in touched else 0.0
        strict, loose = (residual(wanted, integers, axis, k.wider(more)) for k in (ROUNDED, MOVED))
        weights.append((name, strict, loose))
    # Integers that are noted as moved may have moved hardly at all: then they are held to rounding too.
    near = 2 * sum(not strict.broken for _, strict, _ in weights) >= len(weights)
    moved = bool(noted_integers(model)) and not near
    found: list[Finding] = []
    for name, strict, loose in weights:
        judged = loose if moved else strict
        if judged.broken:
            found.append(
                Finding(
                    check="weights",
                    place=f"layer {readers[name][0].name!r}, weight {known[name].name!r}",
                    found=f"{judged.broken} (rounding is off by {judged.rms:.3g} steps root mean square, "
                    f"{judged.worst:.3g} at most; {judged.excess:.3g} times what is allowed)",
                    cause=judged.broken,
                )
            )
    for bias, excess in wrong_biases(biases):
        steps, wanted = known[bias.name].steps, pairing.floats.constants[pairing.constants[bias.name]]
        got = float(steps[bias.worst] * known[bias.name].scale[bias.worst])
        found.append(
            Finding(
                check="weights",
                place=f"layer {readers[bias.name][0].name!r}, bias {known[bias.name].name!r}",
                found=f"it is {got:.5g} where {float(wanted[bias.worst]):.5g} is wanted (channel "
                f"{bias.worst}), {excess:.3g} times what is allowed",
                cause=_bias_cause(steps * known[bias.name].scale, wanted),
            )
        )
    return found


def _bias_cause(got: Array, wanted: Array) -> str:
    if not got.any():
        return "the bias is missing"
    power = float(np.dot(got, got))
    ratio = float(np.dot(got, wanted)) / power if power else 0.0
    off = float(np.abs(got * ratio - wanted).max())
    if ratio > 0 and off < 0.02 * float(np.abs(wanted).max()) and abs(ratio - 1) > 1e-3:
        return f"the bias was made for a grid {1 / ratio:.3g} times as coarse"
    return "the bias is that of another layer, or its high bits are lost"
