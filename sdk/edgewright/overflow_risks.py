"""Overflow risks: in which layers, in which runtimes, on which instruction sets 16-bit sums can overflow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx

from edgewright.checks import Check, Verdict
from edgewright.integer_layers import IntegerLayer, integer_layers, unread_layers
from edgewright.narrow_kernels import HIGH, KERNELS, LOW, ONNX_RUNTIME, Kernel, met
from edgewright.overflow_proof import (
    MOST_32,
    Risk,
    activation_offset,
    any_two_fit,
    risk,
    runs_in_integers,
    worst_32,
)
from edgewright.overflow_reach import reach
from edgewright.overflow_witness import OverflowWitness, confirm, witness
from edgewright.subject import Subject

Proven = Literal["safe", "at risk", "not in integers", "not proven"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OverflowFinding:
    """What is known of one layer in one kernel.

    Attributes:
        layer: The node's name.
        operator: Its kind.
        runtime, kernel, instruction_sets: Whose sums, and where it is chosen.
        verdict: "safe": no input overflows. "at risk": the witness does. "not in integers": this runtime
            computes the layer in floating point. "not proven": its weights have a form that is not read,
            or the runtime has kernels for it that add other pairs.
        worst: The sum farthest from zero that some input gives.
        limit: What the sum may be.
        pairs: Pairs of weights that can overflow, of all outputs.
        outputs: Outputs with such a pair.
        low, high: The range of the activations.
        witness: A layer input that overflows; None where there is none.
        reach: What is known of the network's own inputs; empty where nothing was looked for.
        reached: Whether some input of the network makes this layer overflow, None where it is not known.
        confirmed: What the runtime did with the witness on this machine; empty where it was not tried.
        remedy: What to do; empty where the layer is safe.
    """

    layer: str
    operator: str
    runtime: str
    kernel: str
    instruction_sets: tuple[str, ...]
    verdict: Proven
    worst: int
    limit: int
    pairs: int
    outputs: int
    low: int
    high: int
    witness: OverflowWitness | None = None
    reach: str = ""
    reached: bool | None = None
    confirmed: str = ""
    remedy: str = ""


def overflow_risks(
    graph: onnx.ModelProto,
    *,
    samples: Mapping[str, npt.NDArray[Any]] | None = None,
    kernels: Sequence[Kernel] = KERNELS,
    rounds: int | None = None,
    seed: int = 0,
) -> tuple[OverflowFinding, ...]:
    """Proves or refutes, for every integer layer of a QDQ graph and every kernel, that no sum overflows.

    The native engine is exact, whatever the weights: for an artifact that runs on it, a risk is news of
    *other* runtimes that might run the same model.onnx, and no fault. For an ONNX file that ONNX Runtime runs
    as it comes, the risk is its own: `overflow_check` judges it.

    Where ONNX Runtime saturates on this machine, each of its witnesses is run in it.

    Args:
        graph: A QDQ graph with its constants inside. Float layers are passed over.
        samples: Real inputs by name, batch first: whether the network itself makes a layer overflow is looked
            for among them and around them; left out, only the layers' own inputs are known.
        kernels: Of whom it is asked.
        rounds: Of the search around the samples, where none of them overflows; fitting the size if left out.
        seed: Draws samples and changes.

    Returns:
        One finding per layer and kernel that multiplies it, in the order of the graph; then one per layer
        whose 32-bit sums can overflow, in any runtime.
    """
    layers = integer_layers(graph)
    found: list[OverflowFinding] = []
    cases: dict[tuple[int, bool, bytes], tuple[IntegerLayer, Kernel, Risk]] = {}
    risky: dict[int, tuple[int, bool, bytes]] = {}
    for number, layer in enumerate(layers):
        for kernel in kernels:
            if layer.weight.dtype != np.int8 or layer.depthwise:
                continue  # exact in every kernel
            if not runs_in_integers(layer, kernel):
                found.append(_finding(layer, kernel, "not in integers", None))
                continue
            # Kernels that add the same pairs have the same risk, witness and inputs.
            key = (number, kernel.signed, met(kernel, layer.weight.shape, layer.groups).tobytes())
            if key not in cases:
                cases[key] = (layer, kernel, risk(layer, kernel))
            of_layer = cases[key][2]
            if of_layer.count:
                risky[len(found)] = key
            verdict: Proven = "at risk" if of_layer.count else "safe"
            unsettled = kernel.varies and (layer.groups > 1 or layer.weight.shape[1] == 1)
            if verdict == "safe" and unsettled and not any_two_fit(layer, kernel):
                verdict = "not proven"
            found.append(_finding(layer, kernel, verdict, of_layer))
    cases = {key: cases[key] for key in dict.fromkeys(risky.values())}
    told = {key: witness(*case) for key, case in cases.items()}
    for at, key in risky.items():
        stock = found[at].runtime == ONNX_RUNTIME.runtime
        done = confirm(cases[key][0], *told[key]) if stock else ""
        found[at] = replace(found[at], witness=told[key][0], confirmed=done)
    if samples is not None:
        searched = reach(graph, list(cases.values()), samples, rounds=rounds, seed=seed)
        reached = dict(zip(cases, searched, strict=True))
        for at, key in risky.items():
            one = reached[key]
            found[at] = replace(found[at], reach=one.said(), reached=one.found is not None)
    return (*found, *_not_proven(graph, kernels), *_beyond_32_bits(layers))


def look_for_overflow(
    subject: Subject, samples: Mapping[str, npt.NDArray[Any]], *, seed: int
) -> tuple[tuple[OverflowFinding, ...], list[Check]]:
    """What verification says of overflow: all that was found, and a check where the risk is the subject's.

    Args:
        subject: What is verified.
        samples: Real inputs by name.
        seed: Of the search.
    """
    # The search for inputs of the network takes its time: only where the risk is the subject's own.
    own = subject.artifact is None or subject.runtime != "native"
    findings = overflow_risks(subject.graph, samples=samples if own else None, seed=seed)
    check = overflow_check(findings) if subject.artifact is None else None
    return findings, [] if check is None else [check]


def overflow_check(
    findings: Sequence[OverflowFinding], *, runtime: str = ONNX_RUNTIME.runtime
) -> Check | None:
    """The check that decides where `runtime` is what will run, as it comes.

    Failed where an input of the network is known that overflows; "cannot tell" where only inputs of a layer
    are, or a layer cannot be read; passed where no overflow can exist.

    Args:
        findings: Of `overflow_risks`.
        runtime: Its name, as the findings say it.

    Returns:
        None where the runtime multiplies nothing in integers.
    """
    own = [f for f in findings if f.runtime == runtime and f.verdict != "not in integers"]
    if not own:
        return None
    risky = [f for f in own if f.verdict != "safe"]
    reached = [f for f in risky if f.reached]
    verdict: Verdict = "failed" if reached else "cannot tell" if risky else "passed"
    sets = ", ".join(dict.fromkeys(s for f in own for s in f.instruction_sets))
    return Check(
        name="overflow",
        what=f"of {len(own)} layers, those whose 16-bit sums can overflow in {runtime} on {sets}",
        verdict=verdict,
        value=float(len(risky)),
        interval=None,
        bound=0.0,
        unit="layers",
        remedy=(reached or risky)[0].remedy if risky else "",
    )


def _not_proven(graph: onnx.ModelProto, kernels: Sequence[Kernel]) -> Iterator[OverflowFinding]:
    for node in unread_layers(graph):
        for kernel in kernels:
            yield OverflowFinding(
                layer=node.name or node.output[0],
                operator=node.op_type,
                runtime=kernel.runtime,
                kernel=kernel.name,
                instruction_sets=kernel.instruction_sets,
                verdict="not proven",
                worst=0,
                limit=HIGH,
                pairs=0,
                outputs=0,
                low=0,
                high=255,
                remedy="quantize to QDQ (QuantFormat.QDQ), static, with weights as constants",
            )


def _beyond_32_bits(layers: Sequence[IntegerLayer]) -> Iterator[OverflowFinding]:
    for layer in layers:
        worst, outputs = worst_32(layer)
        if outputs:
            yield OverflowFinding(
                layer=layer.name,
                operator=layer.node.op_type,
                runtime="any",
                kernel="32-bit accumulators",
                instruction_sets=("all",),
                verdict="at risk",
                worst=worst,
                limit=MOST_32,
                pairs=0,
                outputs=outputs,
                low=layer.low,
                high=layer.high,
                remedy="split the layer, so that fewer products add up",
            )


def _finding(layer: IntegerLayer, kernel: Kernel, verdict: Proven, of_layer: Risk | None) -> OverflowFinding:
    offset = activation_offset(layer, kernel)
    worst = of_layer.worst if of_layer else 0
    return OverflowFinding(
        layer=layer.name,
        operator=layer.node.op_type,
        runtime=kernel.runtime,
        kernel=kernel.name,
        instruction_sets=kernel.instruction_sets,
        verdict=verdict,
        worst=worst,
        limit=HIGH if worst >= 0 else LOW,
        pairs=of_layer.count if of_layer else 0,
        outputs=of_layer.channels if of_layer else 0,
        low=layer.low - offset,
        high=layer.high - offset,
        remedy=_remedy(kernel) if verdict in ("at risk", "not proven") else "",
    )


def _remedy(kernel: Kernel) -> str:
    if kernel.signed:
        return "keep weights within [-127, 127], or update the runtime"
    own = "set session.x64quantprecision=1, or " if kernel == ONNX_RUNTIME else ""
    return (
        f"{own}quantize anew with overflow_safe='pairs', reduce_range or uint8 weights, or run it on a CPU "
        "with VNNI or on Edgewright's own engine"
    )
