"""Threads inside one call: the same bits for any number, and no caller that waits forever."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from edgewright_kernels import Engine, _native, cpu_paths, reference
from edgewright_kernels import plan as ir
from kernels.plans import OPERATORS, Draw, Program, one_operator, rescale, small_cnn

EVERYTHING = 1e-9  # nanoseconds of work that are worth handing over: even the smallest operator is shared


def sharing(program: Program, cpu: str, threads: int) -> _native.Engine:
    weights = memoryview(program.weights)
    return _native.Engine(ir.encode(program.plan()), weights, cpu, threads, worthwhile=EVERYTHING)


@pytest.mark.parametrize("cpu", cpu_paths())
@pytest.mark.parametrize("kind", sorted(OPERATORS))
def test_any_number_of_threads_gives_the_bits_of_one(kind: str, cpu: str) -> None:
    for seed in range(1000, 1025):
        draw = Draw(seed)
        program = one_operator(kind, draw)
        inputs = draw.inputs(program.plan(), 2)
        expected = Engine(ir.encode(program.plan()), program.weights, cpu=cpu).run(inputs)
        for threads in (2, 3, 5):
            found = sharing(program, cpu, threads).run(inputs)
            for name, value in expected.items():
                np.testing.assert_array_equal(found[name], value, strict=True, err_msg=f"{seed}, {threads}")


def wide(draw: Draw) -> tuple[Program, dict[str, np.ndarray]]:
    """Arrays of many blocks through every operator that is shared by blocks, channels first and last."""
    p = Program()
    image = p.input("image", (70, 61, 5), scale=0.5, zero_point=3)
    row = p.input("row", (5,), zero_point=9)
    one = p.input("one", (1,), zero_point=200)
    half = ir.Rescale(multiplier=np.array([1 << 29, 1 << 29], np.int32), shift=np.array([30, 30], np.int32))
    x = p.lookup(image, draw.rng.permutation(256).astype(np.uint8))
    x = p.add(p.add(x, image, half, 50), row, half, 60)
    x = p.multiply(p.multiply(x, one, rescale(1 << 30, 37), 100), x, rescale(1 << 30, 37), 90)
    p.output("image_out", x)
    flat = p.reshape(p.requantize(x, rescale(1 << 30, 30), 7), (70, 305))
    p.output("flat", p.transpose(p.concat([flat, flat], 1), (1, 0)))
    p.output("some", p.slice(flat, (1, 2), (2, 3), (30, 90)), order=(1, 0))
    p.output("reversed", p.reshape(flat, (7, 10, 305)), order=(2, 1, 0))
    return p, draw.inputs(p.plan(), 2)


@pytest.mark.parametrize("cpu", cpu_paths())
def test_long_arrays_are_shared_and_keep_the_bits_of_the_reference(cpu: str) -> None:
    for seed in range(3):
        program, inputs = wide(Draw(seed))
        expected = reference.run(program.plan(), program.weights, inputs)
        for threads in (1, 2, 3, 5):
            found = sharing(program, cpu, threads).run(inputs)
            for name, value in expected.items():
                np.testing.assert_array_equal(found[name], value, strict=True, err_msg=f"{name}, {threads}")


def network() -> tuple[Program, dict[str, np.ndarray]]:
    draw = Draw(2)
    program = small_cnn(draw)
    return program, {"image": draw.rng.uniform(0, 1, (3, 3, 8, 8)).astype(np.float32)}


def test_callers_at_once_all_end_with_the_same_bits() -> None:
    program, inputs = network()
    expected = Engine(ir.encode(program.plan()), program.weights).run(inputs)["logits"].tobytes()
    engine = sharing(program, "", 3)
    right: list[bool] = []
    together = threading.Barrier(6)

    def work() -> None:
        together.wait(timeout=30)
        right.append(all(engine.run(inputs)["logits"].tobytes() == expected for _ in range(100)))

    callers = [threading.Thread(target=work, daemon=True) for _ in range(6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(timeout=60)
    assert right == [True] * 6


@pytest.mark.parametrize("threads", [0, -1, 65])
def test_a_number_of_threads_that_is_not_allowed_is_a_value_error(threads: int) -> None:
    program, _ = network()
    with pytest.raises(ValueError, match=f"{threads} threads: 1 to 64 are allowed"):
        Engine(ir.encode(program.plan()), program.weights, threads=threads)


def test_working_memory_is_known_at_load_and_grows_by_one_scratch_a_thread() -> None:
    program, inputs = wide(Draw(0))
    engines = [Engine(ir.encode(program.plan()), program.weights, threads=n) for n in (1, 2, 3, 64)]
    sizes = [engine.arena_bytes for engine in engines]
    scratch = sizes[1] - sizes[0]
    assert scratch > 0
    assert sizes == [sizes[0] + (n - 1) * scratch for n in (1, 2, 3, 64)]
    assert [engine.threads for engine in engines] == [1, 2, 3, 64]
    for engine, size in zip(engines, sizes, strict=True):
        engine.run(inputs)
        assert engine.arena_bytes == size


def in_another_process(script: str, tmp_path: Path) -> str:
    """What a script prints that finds a plan, its weights, an input and the expected bits in a folder."""
    program, inputs = network()
    plan = ir.encode(program.plan())
    (tmp_path / "plan").write_bytes(plan)
    (tmp_path / "weights").write_bytes(program.weights)
    np.save(tmp_path / "image.npy", inputs["image"])
    np.save(tmp_path / "logits.npy", Engine(plan, program.weights).run(inputs)["logits"])
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + script], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.stderr == ""
    return done.stdout.strip()


BEGIN = f"""
import os, threading
from pathlib import Path
import numpy as np
from edgewright_kernels import _native
weights = Path("weights").read_bytes()
image, logits = np.load("image.npy"), np.load("logits.npy").tobytes()
def load(threads):
    plan = Path("plan").read_bytes()
    return _native.Engine(plan, memoryview(weights), "", threads, worthwhile={EVERYTHING})
def right(engine):
    return engine.run({{"image": image}})["logits"].tobytes() == logits
def tasks():
    return os.listdir("/proc/self/task")
def comes_true(question):
    return any(question() or os.sched_yield() for _ in range(1_000_000))
"""

FORKS = """
engine = load(3)
assert right(engine)
busy = True
def work():
    while busy:
        right(engine)
other = threading.Thread(target=work)
other.start()  # so that some of the forks happen in the middle of a call
codes = []
for _ in range(20):
    child = os.fork()
    if child == 0:
        good = right(engine) and right(engine)
        three = len(tasks()) == 3
        del engine
        os._exit(0 if good and three else 1)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
busy = False
other.join()
print(codes == [0] * 20, right(engine))
"""

ENDS = """
before = len(tasks())
engine = load(4)
started = len(tasks()) - before
assert right(engine)
del engine
print(started, comes_true(lambda: len(tasks()) == before))
"""

SLEEPS = """
def state(task):
    return Path(f"/proc/self/task/{task}/stat").read_text().rpartition(")")[2].split()[0]
old = set(tasks())
engine = load(3)
assert right(engine)
print(comes_true(lambda: all(state(task) == "S" for task in set(tasks()) - old)), len(set(tasks()) - old))
"""

needs_proc = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks at threads through /proc")


@needs_proc
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_process_goes_on_with_threads_of_its_own(tmp_path: Path) -> None:
    assert in_another_process(FORKS, tmp_path) == "True True"


@needs_proc
def test_threads_end_with_the_engine(tmp_path: Path) -> None:
    assert in_another_process(ENDS, tmp_path) == "3 True"


@needs_proc
def test_threads_sleep_between_calls(tmp_path: Path) -> None:
    assert in_another_process(SLEEPS, tmp_path) == "True 2"
