"""Writes a folder of cases for tests/kernels/native/replay.cpp: plans, weights, inputs, and expected bits.

    python -m kernels.cases OUT [--each 12] [--seed 0]

One folder per case: `plan.bin`, `weights.safetensors` (the bytes that the plan points into), `input.N.bin`
and `output.N.bin`, the raw values of port N for a few samples. The outputs are those of reference.py.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from edgewright_kernels import plan as ir
from edgewright_kernels import reference
from kernels.plans import OPERATORS, Draw, Program, one_operator, small_cnn


def write_case(folder: Path, program: Program, draw: Draw, batch: int) -> None:
    """Writes one case with random inputs."""
    plan = program.plan()
    inputs = draw.inputs(plan, batch)
    outputs = reference.run(plan, bytes(program.weights), inputs)
    folder.mkdir()
    (folder / "plan.bin").write_bytes(ir.encode(plan))
    (folder / "weights.safetensors").write_bytes(program.weights)
    for what, ports, values in (("input", plan.inputs, inputs), ("output", plan.outputs, outputs)):
        for i, port in enumerate(ports):
            (folder / f"{what}.{i}.bin").write_bytes(values[plan.tensors[port].name].tobytes())


def write_cases(out: Path, *, each: int, seed: int) -> int:
    """Replaces `out` by cases of every operator and of networks, `each` of a kind; gives their number."""
    if out.exists():
        shutil.rmtree(out)
    out.mkdir(parents=True)
    count = 0
    for kind in (*sorted(OPERATORS), "network"):
        for number in range(each):
            draw = Draw(seed * 1_000_000 + number)
            program = small_cnn(draw) if kind == "network" else one_operator(kind, draw)
            write_case(out / f"{kind}-{number}", program, draw, batch=1 + number % 3)
            count += 1
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes cases for the C++ tests.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--each", type=int, default=12, help="cases of each operator")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write_cases(options.out, each=options.each, seed=options.seed)


if __name__ == "__main__":
    main()
