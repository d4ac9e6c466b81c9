"""Which of two calls is faster: pairs, until it is known."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Literal

from edgewright.checks import Check
from edgewright.latency import paired
from edgewright.progress import OnProgress, Progress
from edgewright_ota import MedianSequence, count_needed

ALPHA = 0.05
FIRST = 10  # pairs that say something at the soonest

LatencyVerdict = Literal["A is faster", "B is faster", "equivalent", "cannot tell"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyComparison:
    """Latency of B against A.

    Attributes:
        verdict: "B is faster" or "A is faster": surely by more than what counts as equal; "equivalent":
            surely by less; or "cannot tell".
        ratio: Median of B's time over A's, of the pairs.
        interval: Confidence sequence of that median, 95 %: it may be looked at after every pair.
        equivalent: What counts as equal: 0.02 is a ratio from 1 / 1.02 to 1.02.
        pairs: Measured.
        pairs_needed: About how many more would tell; None where it is told, or never would be.
        median_a_ms: Middle of A's times, ms.
        median_b_ms: Of B's.
        min_a_ms: A's fastest, ms.
        min_b_ms: B's.
    """

    verdict: LatencyVerdict
    ratio: float
    interval: tuple[float, float]
    equivalent: float
    pairs: int
    pairs_needed: int | None
    median_a_ms: float
    median_b_ms: float
    min_a_ms: float
    min_b_ms: float


def compare_calls(
    a: Callable[[], object],
    b: Callable[[], object],
    *,
    equivalent: float = 0.02,
    max_slowdown: float | None = None,
    max_pairs: int = 2000,
    seed: int = 0,
    progress: OnProgress | None = None,
) -> LatencyComparison:
    """Times two calls in pairs, in an order drawn for each, until the question is decided.

    The datum is the logarithm of a pair's ratio; the confidence sequence is that of its median, by signs.
    Where A and B take equally long, or one always as many times as long as the other, the drawn order alone
    makes the signs fair, so the chance of a wrong verdict is at most 5 % whatever the times themselves do:
    outliers, drifts, bursts of load, a second call that finds warm caches.

    Args:
        a: One call.
        b: The other.
        equivalent: Ratio less 1 that counts as equal: 0.02 is 2 %.
        max_slowdown: How much slower B may be; if given, that is the question, else which is faster.
        max_pairs: When to give up.
        seed: Draws the orders.
        progress: Called as the work goes on.

    Raises:
        ValueError: A number that makes no sense.
    """
    if not 0 < equivalent < 1:
        raise ValueError(f"equivalent is {equivalent}; it must be between 0 and 1")
    if max_slowdown is not None and not 0 <= max_slowdown < math.inf:
        raise ValueError(f"max_slowdown is {max_slowdown}; it must be 0 or more")
    if max_pairs < FIRST:
        raise ValueError(f"max_pairs is {max_pairs}; it must be {FIRST} at least")
    sequence = MedianSequence()
    times: list[tuple[int, int]] = []
    with closing(paired(a, b, draw=random.Random(seed))) as pairs:  # noqa: S311 - no secret
        for pair in pairs:
            times.append(pair)
            sequence.add(math.log(max(pair[1], 1) / max(pair[0], 1)))
            done = len(times)
            if done >= max_pairs or (done >= FIRST and _decided(sequence, equivalent, max_slowdown)):
                break
            if progress and done % 20 == 0:
                progress(Progress(step="compare: latency", done=done, total=max_pairs))
    verdict = judged(sequence, equivalent)
    low, high = sequence.interval(ALPHA)
    of_a, of_b = ([t[i] / 1e6 for t in times] for i in (0, 1))
    return LatencyComparison(
        verdict=verdict,
        ratio=math.exp(sequence.median),
        interval=(math.exp(low), math.exp(high)),
        equivalent=equivalent,
        pairs=len(times),
        pairs_needed=pairs_needed(sequence, equivalent) if verdict == "cannot tell" else None,
        median_a_ms=statistics.median(of_a),
        median_b_ms=statistics.median(of_b),
        min_a_ms=min(of_a),
        min_b_ms=min(of_b),
    )


def judged(sequence: MedianSequence, equivalent: float, alpha: float = ALPHA) -> LatencyVerdict:
    """What pairs say, of which the sequence has the logarithms of B's time over A's."""
    low, high = sequence.interval(alpha)
    edge = math.log1p(equivalent)
    if high < -edge:
        return "B is faster"
    if low > edge:
        return "A is faster"
    return "equivalent" if -edge <= low and high <= edge else "cannot tell"


def pairs_needed(sequence: MedianSequence, equivalent: float, alpha: float = ALPHA) -> int | None:
    """About how many more pairs would bring a verdict, if they are like those so far; None if none would."""
    edge = math.log1p(equivalent)
    faster, slower = sequence.share_below(-edge), sequence.share_above(edge)
    neither = min(sequence.share_above(-edge), sequence.share_below(edge))
    needed = [n for s in (faster, slower, neither) if (n := count_needed(s, alpha / 2)) is not None]
    return max(min(needed) - sequence.count, 1) if needed else None


def slowdown_check(found: LatencyComparison, bound: float) -> Check:
    """Whether B is surely no slower than allowed; `bound` 0.02 is 2 %."""
    low, high = found.interval
    limit = 1 + bound + 1e-12
    percent = 100 * (found.ratio - 1)
    return Check(
        name="slowdown",
        what="how much slower B is than A",
        verdict="passed" if high <= limit else "failed" if low > limit else "cannot tell",
        value=percent,
        interval=(100 * (low - 1), 100 * (high - 1)),
        bound=100 * bound,
        unit="%",
        remedy=""
        if high <= limit
        else "keep A, or find B's slow operators with `edgewright bench --profile`"
        if low > limit
        else f"{found.pairs:,} pairs are too few; raise --max-pairs, or find a quieter machine",
    )


def _decided(sequence: MedianSequence, equivalent: float, max_slowdown: float | None) -> bool:
    if max_slowdown is None:
        return judged(sequence, equivalent) != "cannot tell"
    low, high = sequence.interval(ALPHA)
    bound = math.log1p(max_slowdown)
    return high <= bound or low > bound
