"""A teacher of 120 million parameters and a student of 8 million: shapes, memory, and one step."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

STEP = """
import json, resource, sys
import numpy as np
import torch
from dataclasses import replace
from large_teacher import LENGTH, RELATIONS, large, small
from edgewright import Data, distill

torch.set_num_threads(1)
torch.manual_seed(0)
teacher, student = large().eval(), small()
random = np.random.default_rng(0)
mask = (np.arange(LENGTH) < random.integers(8, LENGTH, 4)[:, None]).astype(np.int64)
x = {"ids": random.integers(0, 30522, (4, LENGTH)) * mask, "mask": mask}
y = np.array([0, 1, 0, 1])
data = Data.from_arrays(x, y, x, y, batch_size=4)
losses = []
taught = distill(
    student, teacher, data, replace(RELATIONS, epochs=1, warmup=0.0),
    progress=lambda r: losses.append(r.metrics["loss"])
)
with torch.no_grad():
    shapes = [list(m(torch.from_numpy(x["ids"]), torch.from_numpy(mask)).shape) for m in (teacher, taught)]
moved = [n for n, v in taught.named_parameters() if not torch.equal(v, student.get_parameter(n))]
print(json.dumps({
    "parameters": [sum(p.numel() for p in m.parameters()) for m in (teacher, taught)],
    "shapes": shapes, "loss": losses[-1], "moved": moved,
    "grads": sum(p.grad is not None for p in teacher.parameters()),
    "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
}))
"""


@pytest.mark.slow
def test_one_step_of_a_120_million_teacher_and_an_8_million_student_takes_less_than_two_gib() -> None:
    done = subprocess.run(
        [sys.executable, "-c", STEP],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT / "benchmarks",
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["parameters"] == [120_697_346, 8_133_378]
    assert found["shapes"] == [[4, 2], [4, 2]]
    assert 0 < found["loss"] < 10
    assert {"layers.3.value.weight", "layers.0.up.weight", "words.weight", "head.weight"} <= set(
        found["moved"]
    )
    assert found["grads"] == 0
    assert found["peak_bytes"] < 2 * 2**30
