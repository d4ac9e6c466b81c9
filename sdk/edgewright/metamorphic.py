"""Metamorphic relations: what must not change an output, whatever the output should be.

A sample gives the same alone and among others, in any order, again, on two threads, with anything behind its
mask, and padded. Where the engine is exact the same means the same bits. Elsewhere float32 sums may be taken
in another order. (Chen, Cheung and Yiu 1998, "Metamorphic testing: a new approach for generating next test
cases".)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edgewright.agreement import differing, lowest_sqnr_db
from edgewright.checks import Check, at_least, at_most
from edgewright.graph import quantizes
from edgewright.subject import Arrays, Run, Subject
from edgewright.token_cases import TokenLayout
from edgewright_device import Runner

MOST_SAMPLES = 24
FEW_SAMPLES = 6  # of large ones
LARGE = 1 << 14  # values of an input sample
ALONE = 6

# What two orders of float32 sums must have in common. A sum of n terms is off by about sqrt(n) times 6e-8 of
# them; 100 layers of 10,000 terms by 6e-5 of the largest: 84 dB, and a margin of 16.
FLOAT_DB = 60.0
# Behind a grid a value midway between two steps may be rounded either way, and that may go on.
GRID_DB = 25.0

Same = Callable[[str, str, Arrays, Arrays], Check]


def exactly(name: str, what: str, wanted: Arrays, got: Arrays) -> Check:
    """That two runs gave the same bits."""
    return at_most(name, f"{what}, differing values", differing(wanted, got), 0, "values")


def within(least_db: float) -> Same:
    """That two runs gave the same up to noise of so many dB below the signal."""

    def same(name: str, what: str, wanted: Arrays, got: Arrays) -> Check:
        return at_least(name, what, lowest_sqnr_db(wanted, got), least_db, "dB")

    return same


def batch_invariance(run: Run, inputs: Arrays, whole: Arrays, same: Same) -> Check:
    """That samples alone give what they give in a batch (`whole`)."""
    count = min(ALONE, _count(inputs))
    parts = [run(_rows(inputs, slice(i, i + 1))) for i in range(count)]
    alone = {n: np.concatenate([p[n] for p in parts]) for n in parts[0]}
    return same("batch", "samples alone against the same in a batch", _rows(whole, slice(count)), alone)


def order_invariance(run: Run, inputs: Arrays, whole: Arrays, same: Same) -> Check:
    """That a batch in reverse gives the same results in reverse."""
    turned = slice(None, None, -1)
    back = _rows(run(_rows(inputs, turned)), turned)
    return same("order", "a batch in reverse against the batch", whole, back)


def determinism(run: Run, inputs: Arrays, whole: Arrays) -> Check:
    """That the same call gives the same bits again, on any engine."""
    return exactly("repeat", "the same call again", whole, run(inputs))


def thread_invariance(run: Run, inputs: Arrays, whole: Arrays, same: Same) -> Check:
    """That a run with two threads gives what one gives (`whole`)."""
    return same("threads", "two threads against one", whole, run(inputs))


def mask_invariance(run: Run, inputs: Arrays, layout: TokenLayout, same: Same) -> Check:
    """That what lies behind the mask cannot matter: sequences are cut to half, and all behind is replaced.

    Args:
        run: The model.
        inputs: Of several samples, with a mask.
        layout: Which input is the mask, and which it belongs to.
        same: How results are compared.
    """
    one, other, kept = behind_the_mask(inputs, layout)
    wanted, got = (_visible(run(x), kept) for x in (one, other))
    return same("mask", "other values behind the mask", wanted, got)


def padding_invariance(
    run: Run, inputs: Arrays, mask: str, axes: Mapping[str, int], length: int, same: Same
) -> Check:
    """That a sequence gives the same padded as by itself: cut to a length, and with zeros behind that.

    Args:
        run: A model that takes sequences of any length.
        inputs: Of the largest length, with a mask.
        mask: Which input that is, (samples, length).
        axes: The axis of the sequence, by the name of each input that has one.
        length: Shorter than the largest.
        same: How results are compared.
    """
    size = inputs[mask].shape[1]
    short = dict(inputs)
    padded = {n: v.copy() for n, v in inputs.items()}
    for name, axis in axes.items():
        short[name] = np.ascontiguousarray(inputs[name].take(range(length), axis))
        np.moveaxis(padded[name], axis, 0)[length:] = 0
    wanted, got = run(short), run(padded)
    for name, value in got.items():
        for axis in range(1, value.ndim):
            if value.shape[axis] != wanted[name].shape[axis]:
                got[name] = value.take(range(length), axis)
    seen = short[mask] != 0
    what = f"sequences of {length} padded to {size} against the same by themselves"
    return same("padding", what, _visible(wanted, seen), _visible(got, seen))


def relations(subject: Subject, reference: Run, samples: Arrays) -> list[Check]:
    """Every relation that applies to a model, on a few samples.

    Args:
        subject: The model.
        reference: The float model. What hides behind a mask must not matter only where it does not there.
        samples: Real inputs, by name.
    """
    large = sum(v[:1].size for v in samples.values()) > LARGE
    inputs = _rows(samples, slice(FEW_SAMPLES if large else MOST_SAMPLES))
    exact = subject.runtime == "native" and not (subject.artifact and subject.artifact.parts)
    same: Same = exactly if exact else within(GRID_DB if quantizes(subject.graph) else FLOAT_DB)
    whole = subject.run(inputs)
    checks = [
        batch_invariance(subject.run, inputs, whole, same),
        order_invariance(subject.run, inputs, whole, same),
        determinism(subject.run, inputs, whole),
    ]
    if subject.artifact is not None:
        threaded = Runner(subject.artifact, backend=subject.runtime, threads=2)
        checks.append(thread_invariance(threaded.run, inputs, whole, same))
    lengths = subject.artifact.lengths if subject.artifact else None
    layout = TokenLayout.of(subject.inputs, samples)
    masked = layout.mask is not None and bool(layout.behind)
    if masked and mask_invariance(reference, inputs, layout, within(FLOAT_DB)).verdict == "passed":
        promised = lengths is not None and lengths.mask == layout.mask
        how = exactly if exact and promised else within(GRID_DB)
        checks.append(mask_invariance(subject.run, inputs, layout, how))
    if lengths is not None and lengths.mask is not None and len(lengths.sizes) > 1:
        axes = {p.name: 1 + p.shape[1:].index(None) for p in subject.inputs if None in p.shape[1:]}
        checks.append(padding_invariance(subject.run, inputs, lengths.mask, axes, lengths.sizes[0], same))
    return checks


def behind_the_mask(inputs: Arrays, layout: TokenLayout) -> tuple[Arrays, Arrays, npt.NDArray[np.bool_]]:
    """Sequences cut to half by their mask, the same with other samples' values behind, and what is kept.

    Returns:
        Inputs, the others, and (samples, length), true where the mask shows.
    """
    assert layout.mask is not None
    mask = inputs[layout.mask]
    ends = np.maximum(1, mask.sum(axis=-1).astype(np.int64) // 2)
    kept = np.arange(mask.shape[1]) < ends[:, None]
    one = {**inputs, layout.mask: kept.astype(mask.dtype)}
    other = dict(one)
    for name in layout.behind:
        values = inputs[name].copy()
        # The front of the next sample, turned round, so that padding is not replaced by padding.
        values[~kept] = np.roll(values, 1, axis=0)[:, ::-1][~kept]
        other[name] = values
    return one, other, kept


def _visible(outputs: Arrays, kept: npt.NDArray[np.bool_]) -> Arrays:
    """Outputs that have a result for each place of a sequence, without those behind the mask."""
    return {
        n: np.where(_like(kept, v), v, np.float32(0)) if v.shape[:2] == kept.shape and v.ndim > 2 else v
        for n, v in outputs.items()
    }


def _like(kept: npt.NDArray[np.bool_], values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    return kept.reshape(*kept.shape, *(1,) * (values.ndim - 2))


def _count(inputs: Mapping[str, npt.NDArray[Any]]) -> int:
    return len(next(iter(inputs.values())))


def _rows(arrays: Mapping[str, npt.NDArray[Any]], rows: slice) -> Arrays:
    return {n: np.ascontiguousarray(v[rows]) for n, v in arrays.items()}
