"""Cases of row numbers: sentences stay sentences, with their ends in place and padding behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgewright_device import Port

NOISE = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLayout:
    """How the inputs of row numbers belong together, as the samples show it.

    Attributes:
        names: The inputs that are changed together: those of int64, and the mask.
        tokens: Those whose numbers are exchanged.
        mask: The input of ones with zeros behind, or None.
        front: Numbers at the start that are the same in all samples, such as [CLS]: 0 or 1.
        back: The same for the last before the padding, such as [SEP].
        padding: What each input has behind a sequence, by name.
    """

    names: frozenset[str]
    tokens: tuple[str, ...]
    mask: str | None
    front: int
    back: int
    padding: Mapping[str, int]

    @classmethod
    def of(cls, ports: Sequence[Port], samples: Mapping[str, npt.NDArray[Any]]) -> TokenLayout:
        """Reads it off the samples."""
        rows = [p.name for p in ports if p.dtype == "int64"]
        masks = [p.name for p in ports if _is_mask(samples[p.name])] if rows else []
        mask = min(masks, key=lambda n: "mask" not in n.lower()) if masks else None
        kept = {n for n in rows if np.isin(samples[n], (0, 1)).all()} if mask else set()
        tokens = tuple(n for n in rows if n not in kept and n != mask)
        if not tokens:
            tokens = tuple(n for n in rows if n != mask)
        along = [n for n in tokens if mask is None or samples[n].shape == samples[mask].shape]
        front = back = 0
        padding: dict[str, int] = {}
        if along:
            shape = samples[along[0]].shape
            ends = np.full(len(samples[along[0]]), shape[-1])
            if mask is not None:
                ends = samples[mask].sum(axis=-1).astype(np.int64)
            front = int(all(_same(samples[n][..., 0]) for n in along))
            last = [np.array([v[..., e - 1] for v, e in zip(samples[n], ends, strict=True)]) for n in along]
            back = int(mask is not None and all(_same(v) for v in last))
        if mask is not None:
            hidden = samples[mask] == 0
            for name in rows:
                if samples[name].shape == hidden.shape:
                    behind = samples[name][hidden]
                    padding[name] = int(behind[0]) if behind.size and _same(behind) else 0
            padding[mask] = 0
        return cls(
            names=frozenset({*rows, *([mask] if mask else [])}),
            tokens=tokens,
            mask=mask,
            front=front,
            back=back,
            padding=padding,
        )

    @property
    def behind(self) -> tuple[str, ...]:
        """The inputs, sorted, that have something behind the mask."""
        return tuple(sorted(n for n in self.padding if n != self.mask))

    def change(
        self,
        case: Mapping[str, npt.NDArray[Any]],
        other: Mapping[str, npt.NDArray[Any]],
        *,
        kind: str,
        part: float,
        sort: int,
        place: float,
        up: bool,
        bounds: Mapping[str, tuple[float, float]],
        seed: tuple[int, int],
    ) -> None:
        """Makes a case of a sample, in place.

        between and boundary: the front of one sample and the end of another; noise: 5 % of the numbers from
        another; shift: all numbers moved by one; edge: one number throughout, the shortest sequence, or the
        longest. The ends and the padding stay where they are, and the mask stays ones with zeros behind.

        Args:
            case: One sample's inputs, by name.
            other: Another's.
            kind: The stratum.
            part: Of the sample, in a mixture.
            sort: The kind of edge, 0..3.
            place: 0..1, draws a number.
            up: A direction.
            bounds: Lowest and highest number, by name.
            seed: Of the noise.
        """
        if kind == "edge" and sort >= 2 and self.mask is not None:
            self._resize(case, longest=sort == 3)
            return
        for number, name in enumerate(self.tokens):
            value, else_ = case[name], other[name]
            start, stop = self.front, self._length(case, value) - self.back
            reach = max(start, min(stop, self._length(other, else_) - self.back))
            if stop <= start:
                continue
            if kind in ("between", "boundary"):
                cut = min(reach, start + int(part * (stop - start)))
                value[..., cut:reach] = else_[..., cut:reach]
            elif kind == "noise":
                random = np.random.default_rng((*seed, number))
                draws = random.random(value[..., start:reach].shape)
                taken = draws <= max(NOISE, draws.min(initial=1.0))  # one at least
                value[..., start:reach][taken] = else_[..., start:reach][taken]
            elif kind == "shift":
                value[..., start:stop] = np.roll(value[..., start:stop], 1 if up else -1, axis=-1)
            elif kind == "edge":
                low, high = (int(b) for b in bounds[name])
                value[..., start:stop] = min(high, low + int(place * (high - low + 1)))

    def _length(self, inputs: Mapping[str, npt.NDArray[Any]], value: npt.NDArray[Any]) -> int:
        """Numbers before the padding."""
        if self.mask is None or inputs[self.mask].shape != value.shape:
            return int(value.shape[-1])
        return int(inputs[self.mask].sum())

    def _resize(self, case: Mapping[str, npt.NDArray[Any]], *, longest: bool) -> None:
        assert self.mask is not None
        mask = case[self.mask]
        now = int(mask.sum())
        wanted = len(mask) if longest else min(now, self.front + self.back + 1)
        inner = range(self.front, max(self.front + 1, now - self.back))
        places = np.concatenate(
            [
                np.arange(self.front),
                np.resize(np.array(inner), max(0, wanted - self.front - self.back)),
                np.arange(now - self.back, now),
            ]
        ).astype(np.int64)[:wanted]
        for name in self.padding:
            value = case[name]
            kept = value[places]
            value[wanted:] = self.padding[name]
            value[:wanted] = kept
        mask[:wanted] = 1


def in_order(mask: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Which rows of a mask are ones with zeros behind, (rows,)."""
    binary = ((mask == 0) | (mask == 1)).all(axis=-1)
    falling: npt.NDArray[np.bool_] = (
        binary & (mask[:, :1] == 1).all(axis=-1) & (np.diff(mask) <= 0).all(axis=-1)
    )
    return falling


def _is_mask(values: npt.NDArray[Any]) -> bool:
    return values.ndim == 2 and values.shape[1] > 1 and bool(in_order(values).all())


def _same(values: npt.NDArray[Any]) -> bool:
    return bool((values == values.reshape(-1)[0]).all())
