"""Telling samples: those whose outputs change when a weight does, for a device to replay."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from edgewright.golden import golden_inputs
from edgewright.profiling import operator_macs
from edgewright.samples import Samples
from edgewright_kernels import Engine, KernelError
from edgewright_kernels.plan import ByteRange, Plan, encode

CANDIDATES = 128
CHANGES = 1000
ENOUGH = 100  # fewer candidates are tried rather than fewer changes than these
FEWEST_CHANGES = 20
WORK = 2e10  # multiply-accumulates that choosing may take, about a second on one core
OVERHEAD = 20_000  # of an operator, in multiply-accumulates


def telling_samples(plan: Plan, weights: bytes, ranges: Mapping[str, ByteRange], samples: Samples) -> Samples:
    """Samples whose outputs tell most changes of one weight: by one step, which is the least.

    Candidates are samples that between them drive every input to its ends (where the network is small), and
    the first ones. Up to a thousand weights are changed, each alone, as many in every layer, and the
    candidates that give another output are noted; then samples are taken one by one, each time that which
    notices most of what few others noticed (greedy maximum coverage). Deterministic. A network so large that
    this would take long gets the first samples.

    Args:
        plan: The integer program.
        weights: Its weights.safetensors.
        ranges: Where each weight lies in there.
        samples: By input name, (samples, ...).

    Returns:
        As many as golden.npz takes.
    """
    first = golden_inputs(samples)
    count = len(next(iter(first.values())))
    work = sum(operator_macs(plan, op) + OVERHEAD for op in plan.ops)
    candidates = min(CANDIDATES, len(next(iter(samples.values()))))
    while candidates > 4 * count and ENOUGH * candidates * work > WORK:
        candidates //= 2
    changes = min(CHANGES, int(WORK / (candidates * work)))
    if candidates <= count or changes < FEWEST_CHANGES:
        return first
    # Samples that drive few places farthest are told apart by many changes only.
    rows = _covering(samples, candidates) if 2 * changes >= CHANGES else np.arange(candidates)
    feed = {n: v[rows] for n, v in samples.items()}
    noticed = _noticed(encode(plan), weights, ranges, feed, changes)
    seen = np.zeros(len(noticed))
    chosen: list[int] = []
    for _ in range(count):
        gain = (noticed * 0.5 ** seen[:, None]).sum(axis=0)
        gain[chosen] = -1.0
        chosen.append(int(gain.argmax()))
        seen += noticed[:, chosen[-1]]
    return {n: v[chosen] for n, v in feed.items()}


def _covering(samples: Samples, count: int) -> npt.NDArray[np.int64]:
    """Numbers of samples: those that have the largest and smallest value of most places, then the first ones.

    Where an input is the same in all samples but a few, as at the border of scans, only these tell what is
    wrong with its weights. They take half of the places at most.
    """
    floats = [v.reshape(len(v), -1) for v in samples.values() if v.dtype == np.float32]
    if not floats:
        return np.arange(count)
    flat = np.concatenate(floats, axis=1)
    flat = flat[:, flat.min(axis=0) < flat.max(axis=0)]
    reached = [found for ends in (flat.argmax(axis=0), flat.argmin(axis=0)) for found in ends.tolist()]
    votes = np.bincount(np.array(reached, np.int64), minlength=len(flat))
    first = np.argsort(-votes, kind="stable")[: min(count // 2, np.count_nonzero(votes))]
    return np.concatenate([first, np.setdiff1d(np.arange(len(flat)), first)])[:count]


def _noticed(
    plan: bytes, weights: bytes, ranges: Mapping[str, ByteRange], feed: Samples, changes: int
) -> npt.NDArray[np.bool_]:
    """Whether each change of a weight gives another output for each candidate: (changes, candidates)."""
    random = np.random.default_rng(0)
    stored = safetensors.numpy.load(weights)
    layers = {n: w for n, w in stored.items() if w.dtype == np.int8 or _has_four_bits(n, stored)}
    names = sorted(layers)
    expected = Engine(plan, weights).run(feed)
    rows: list[npt.NDArray[np.bool_]] = []
    for number in range(changes):
        name = names[number % len(names)]
        at = int(random.integers(layers[name].size))
        old = int(layers[name].reshape(-1)[at])
        changed = bytearray(weights)
        changed[ranges[name].offset + at] = (old - 1 if old > 0 else old + 1) & 0xFF
        try:
            got = Engine(plan, bytes(changed)).run(feed)
        except KernelError:  # a sum that could overflow by now
            continue
        differs = [(got[n] != expected[n]).reshape(len(got[n]), -1).any(axis=1) for n in expected]
        rows.append(np.any(differs, axis=0))
    return np.array(rows).reshape(len(rows), -1)


def _has_four_bits(name: str, stored: Samples) -> bool:
    return stored[name].dtype == np.uint8 and f"{name}.scale" in stored
