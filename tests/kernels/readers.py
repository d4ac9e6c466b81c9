"""Compares the two readers of plan.bin, and the engine with its definition, on trials that the fuzzer kept.

    python -m kernels.readers PAIRS [--keep FOLDER]

PAIRS is the `pairs.bin` of tests/kernels/native/fuzz. Both readers must accept and refuse the same plans, and
where the engine ran one, reference.py must give the same bits. With --keep, FOLDER gets the smallest plan for
each sentence with which the engine refuses.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgewright_kernels import PlanError, UnsupportedError, reference
from edgewright_kernels import plan as ir

DAMAGED, UNSUPPORTED, ACCEPTED, RAN = range(4)
# What the engine MAY refuse on top: unreasonable memory.
ENGINE_ALONE = ("the plan uses the same weights too many times", "bytes beside the arena")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One trial of the fuzzer: what it gave to the engine, and what the engine said."""

    verdict: int
    plan: bytes
    weights: bytes
    message: str = ""
    inputs: tuple[bytes, ...] = ()
    outputs: tuple[bytes, ...] = ()


def split(data: memoryview) -> Iterator[memoryview]:
    """Pieces that each stand behind their size, u32."""
    at = 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "little")
        yield data[at + 4 : at + 4 + size]
        at += 4 + size


def read_pairs(data: bytes) -> Iterator[Pair]:
    at, view = 0, memoryview(data)
    while at < len(data):
        verdict, at, parts = data[at], at + 1, []
        for _ in range(5):
            size = int.from_bytes(view[at : at + 4], "little")
            parts.append(view[at + 4 : at + 4 + size])
            at += 4 + size
        plan, weights, message, inputs, outputs = parts
        yield Pair(
            verdict=verdict,
            plan=bytes(plan),
            weights=bytes(weights),
            message=bytes(message).decode(errors="replace"),
            inputs=tuple(map(bytes, split(inputs))),
            outputs=tuple(map(bytes, split(outputs))),
        )


def difference(pair: Pair) -> str | None:
    """What the two disagree on, if they do."""
    try:
        plan = ir.decode(pair.plan)
        reference.check_weights(plan, pair.weights)
    except (PlanError, UnsupportedError) as error:
        said = UNSUPPORTED if isinstance(error, UnsupportedError) else DAMAGED
        if said == pair.verdict:
            return None
        return f"Python refuses ({error}), the engine says {pair.verdict} ({pair.message})"
    if pair.verdict < ACCEPTED:
        if any(words in pair.message for words in ENGINE_ALONE):
            return None
        return f"Python accepts, the engine refuses ({pair.message})"
    return bits_differ(plan, pair) if pair.verdict == RAN else None


def bits_differ(plan: ir.Plan, pair: Pair) -> str | None:
    inputs = {}
    for number, raw in zip(plan.inputs, pair.inputs, strict=True):
        tensor = plan.tensors[number]
        inputs[tensor.name] = np.frombuffer(raw, tensor.dtype).reshape(-1, *tensor.shape)
    try:
        expected = reference.run(plan, pair.weights, inputs)
    except ValueError as error:
        return None if not pair.outputs else f"reference.py: {error}; the engine ran"
    if not pair.outputs:
        return "reference.py ran, the engine did not"
    for number, raw in zip(plan.outputs, pair.outputs, strict=True):
        name = plan.tensors[number].name
        if expected[name].tobytes() != raw:
            return f"output {name!r} differs from reference.py"
    return None


def read_case(path: Path) -> tuple[bytes, bytes]:
    """Plan and weights of a case file: the size of the plan, u32, the plan, the weights."""
    data = path.read_bytes()
    end = 4 + int.from_bytes(data[:4], "little")
    return data[4:end], data[end:]


def write_case(path: Path, pair: Pair) -> None:
    path.write_bytes(len(pair.plan).to_bytes(4, "little") + pair.plan + pair.weights)


def sentence(message: str) -> str:
    """A refusal as a file name: without what differs from plan to plan."""
    plain = re.sub(r"operator \d+( \(\w+\))?|'[^']*'|\([-\d, ]*\)|-?\d[\d.]*|\bnan\b|\binf\b", " ", message)
    return "-".join(re.findall("[a-z]+", plain.lower().replace("plan.bin", "")))[:60].strip("-")


def keep(folder: Path, pairs: Iterable[Pair]) -> None:
    """Writes the smallest plan for each sentence."""
    smallest: dict[str, Pair] = {}
    for pair in pairs:
        name, size = sentence(pair.message), len(pair.plan) + len(pair.weights)
        if pair.verdict < ACCEPTED and (
            name not in smallest or size < len(smallest[name].plan) + len(smallest[name].weights)
        ):
            smallest[name] = pair
    for name, pair in smallest.items():
        write_case(folder / f"{name}.case", pair)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compares the readers of plan.bin on what the fuzzer kept.")
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--keep", type=Path, help="where one small plan for each refusal goes")
    options = parser.parse_args()
    counts: Counter[int] = Counter()
    for number, pair in enumerate(read_pairs(options.pairs.read_bytes())):
        counts[pair.verdict] += 1
        found = difference(pair)
        if found is not None:
            kept = options.pairs.with_name(f"pair-{number}.case")
            write_case(kept, pair)
            sys.exit(f"readers: trial {number}, kept as {kept}: {found}")
    if options.keep is not None:
        keep(options.keep, read_pairs(options.pairs.read_bytes()))
    sys.stdout.write(f"{counts.total()} plans: both readers agree on all; {counts[RAN]} run alike\n")


if __name__ == "__main__":
    main()
