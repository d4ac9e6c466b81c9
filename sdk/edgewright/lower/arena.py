"""The arena: where each value of a program lies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from edgewright_kernels.plan import ARENA_ALIGNMENT, Op, Reshape, Tensor, tensor_inputs


def place_in_arena(tensors: Iterable[Tensor], ops: Sequence[Op]) -> tuple[tuple[Tensor, ...], int]:
    """Gives every tensor inside a place, so that values alive at the same time do not overlap.

    Greedy by size, the largest first, each at the lowest place that is free during its life.
    (Pisarchyk & Lee 2020, "Efficient Memory Management for Deep Neural Net Inference", greedy by size.)
    A reshaped value lies where it was, if nobody reads the old one any more.

    Returns:
        The tensors with their offsets, and the bytes the arena needs.
    """
    placed = list(tensors)
    life: dict[int, tuple[int, int]] = {}
    for step, op in enumerate(ops):
        for number in (*tensor_inputs(op), op.y):
            first, _ = life.get(number, (step, step))
            life[number] = (first, step)
    home = {n: n for n in life}  # the value whose place it has
    for step, op in enumerate(ops):
        if isinstance(op, Reshape) and life[op.x][1] == step:
            home[op.y] = home[op.x]
    for number, owner in home.items():
        life[owner] = (min(life[owner][0], life[number][0]), max(life[owner][1], life[number][1]))
    order = sorted(
        (n for n, owner in home.items() if placed[n].is_inside and owner == n),
        key=lambda n: (-placed[n].size_bytes, n),
    )
    done: list[tuple[int, int, int]] = []  # number, offset, end
    for number in order:
        size = -(-placed[number].size_bytes // ARENA_ALIGNMENT) * ARENA_ALIGNMENT
        first, last = life[number]
        busy = sorted((offset, end) for n, offset, end in done if life[n][0] <= last and first <= life[n][1])
        at = 0
        for offset, end in busy:
            if at + size <= offset:
                break
            at = max(at, end)
        done.append((number, at, at + size))
    offsets = {number: offset for number, offset, _ in done}
    for number, owner in home.items():
        if owner in offsets:
            placed[number] = replace(placed[number], offset=offsets[owner])
    return tuple(placed), max((end for _, _, end in done), default=0)
