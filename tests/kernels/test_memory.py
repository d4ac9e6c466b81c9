"""What the engine says it takes is what it takes: packed weights once, and a working memory for each call."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from edgewright_kernels import Engine, cpu_paths
from edgewright_kernels import plan as ir
from kernels.plans import Draw, Program

PROGRAM = 24  # bytes that a byte of plan.bin becomes, at most
SLACK = 64 << 10


FIELDS = (
    "arena",
    "ordblks",
    "smblks",
    "hblks",
    "hblkhd",
    "usmblks",
    "fsmblks",
    "uordblks",
    "fordblks",
    "keepcost",
)


class Counts(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _fields_ = tuple((name, ctypes.c_size_t) for name in FIELDS)


def mallinfo() -> ctypes._FuncPointer | None:
    try:
        found = ctypes.CDLL(None).mallinfo2
    except (OSError, AttributeError):
        return None
    found.restype = Counts
    return found


MALLINFO = mallinfo()
counted = pytest.mark.skipif(MALLINFO is None, reason="only glibc 2.33 and later says what is allocated")


def allocated() -> int:
    """Bytes that this process has from malloc and new, large blocks included."""
    assert MALLINFO is not None
    counts = MALLINFO()
    return int(counts.uordblks + counts.hblkhd)


def large() -> tuple[Program, dict[str, np.ndarray]]:
    """Some megabytes of weights, and an arena of some hundred kilobytes."""
    draw, p = Draw(3), Program()
    x = p.input("image", (64, 64, 32), zero_point=100)
    window = ir.Window(kernel=(3, 3), padding=(1, 1, 1, 1))
    x = p.convolution(x, draw.weight((64, 32, 3, 3)), draw.bias(64), window, draw.rescale(64, 90000.0))
    x = p.max_pool(x, ir.Window(kernel=(8, 8), stride=(8, 8)))
    x = p.reshape(x, (4096,))
    for size in (1024, 1024, 10):
        width = p.tensors[x].shape[0]
        x = p.fully_connected(x, draw.weight((size, width)), draw.bias(size), draw.rescale(size, 2e6))
    p.output("scores", x)
    return p, draw.inputs(p.plan(), 1)


@counted
@pytest.mark.parametrize("cpu", cpu_paths())
@pytest.mark.parametrize("threads", [1, 3])
def test_loading_and_running_allocate_what_the_engine_says(cpu: str, threads: int) -> None:
    program, inputs = large()
    plan = ir.encode(program.plan())
    Engine(plan, program.weights, cpu=cpu, threads=threads).run(inputs)  # what is made once in a process
    before = allocated()
    engine = Engine(plan, program.weights, cpu=cpu, threads=threads)
    loaded = allocated()
    assert 0 <= loaded - before - engine.packed_bytes <= PROGRAM * len(plan) + threads * SLACK
    assert engine.packed_bytes > 4 << 20
    for _ in range(5):
        engine.run(inputs)
        assert abs(allocated() - loaded - engine.arena_bytes) <= threads * SLACK
    del engine
    assert abs(allocated() - before) <= threads * SLACK


@counted
def test_calls_at_once_take_one_working_memory_each_and_no_more() -> None:
    program, inputs = large()
    engine = Engine(ir.encode(program.plan()), program.weights)
    engine.run(inputs)
    before, callers = allocated(), 4
    together = threading.Barrier(callers)

    def work() -> None:
        together.wait(timeout=60)
        for _ in range(20):
            engine.run(inputs)

    threads = [threading.Thread(target=work) for _ in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert allocated() - before <= (callers - 1) * engine.arena_bytes + callers * SLACK


PEAK = """
import resource, sys
from pathlib import Path
import numpy as np
from edgewright_kernels import Engine
plan, weights = Path("plan").read_bytes(), Path("weights").read_bytes()
image = np.load("image.npy")
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
engine = Engine(plan, weights)
for _ in range(3):
    engine.run({"image": image})
print(peak() - before, engine.packed_bytes + engine.arena_bytes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts kilobytes, as Linux does")
def test_the_peak_of_the_process_is_what_the_engine_says(tmp_path: Path) -> None:
    program, inputs = large()
    (tmp_path / "plan").write_bytes(ir.encode(program.plan()))
    (tmp_path / "weights").write_bytes(program.weights)
    np.save(tmp_path / "image.npy", inputs["image"])
    done = subprocess.run(
        [sys.executable, "-c", PEAK], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120
    )
    grown, said = map(int, done.stdout.split())
    assert grown <= said + (2 << 20)  # the code of the kernels is read in too
