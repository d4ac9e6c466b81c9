"""Search: which steps, ratios and bits make a model fit its budgets and keep its accuracy."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from edgewright.data import Batch, Data, map_inputs
from edgewright.errors import CompressError, DataError, SearchError
from edgewright.progress import OnProgress
from edgewright.recipe import Recipe
from edgewright.search_budgets import Budget, Quantity
from edgewright.search_pareto import SearchReport
from edgewright.search_run import BEGUN, SearchRun
from edgewright.statistics import paired_interval
from edgewright.training import own_randomness, tensors
from edgewright_device import Target, detect


def search(
    model: nn.Module,
    recipe: Recipe | None = None,
    *,
    data: Data,
    budgets: Sequence[Budget | str],
    out: Path | str,
    min_accuracy: float = -1.0,
    trials: int = 30,
    teacher: nn.Module | None = None,
    target: Target | str | None = None,
    confirm: Iterable[Batch] | None = None,
    progress: OnProgress | None = None,
) -> SearchReport:
    """Searches for a recipe that meets budgets and keeps the accuracy.

    Each trial compresses the model by a recipe of its own, exports it, and measures the artifact: its cost,
    and what it keeps of the float model, with a paired interval. A trial holds where whole intervals hold.
    What is best of many is so in part by luck; so it is judged again, on samples that no trial was chosen by.

    Args:
        model: A classifier. It is not changed.
        recipe: What does not vary; its `search` says what does, `default_space` where it is None.
        data: `train` is what trials learn and calibrate from. By one half of `validation` they are chosen;
            the other is for the winner alone. All of it is to choose by where `confirm` is given.
        budgets: One for each quantity at most, as `Budget` or text such as "latency=5ms".
        out: A folder for the trials. A search that was stopped there goes on.
        min_accuracy: The points of accuracy, below 0, that may be lost against the float model: the teacher
            if there is one, else the model.
        trials: How many; a search that had fewer goes on.
        teacher: As for `compress`.
        target: What will run it; this machine if left out.
        confirm: Batches to judge the winner on, seen nowhere else.
        progress: Told which trial does what, with the time that all trials will still take. An exception that
            it raises cancels the search, which may be resumed. Trials are the same bits for the same seed,
            threads and machine; which are tried depends on latencies too, where there is a budget for them.

    Raises:
        ValueError: Budgets, accuracy or trials that cannot be.
        DataError: The data does not fit, or there is too little to tell such a loss.
        CompressError: A model holds NaN, or is to be distilled without a teacher.
        ExportError: The model cannot be exported, whatever the recipe.
        SearchError: `out` holds something else, or all trials failed.
    """
    wanted = _checked_budgets(budgets)
    if not min_accuracy < 0:
        raise ValueError(f"min_accuracy is in points of accuracy and below 0, not {min_accuracy:g}")
    if trials < 1:
        raise ValueError(f"{trials} trials: one at least is needed")
    base = recipe or Recipe(name="search")
    if teacher is None and (base.distill or "distill" in (base.search.sections if base.search else {})):
        raise CompressError(f"recipe {base.name!r} distils, which needs a teacher; give one")
    there = detect() if target is None else target if isinstance(target, Target) else Target.load(target)
    if "latency" in wanted and there.name != detect().name:
        raise SearchError(
            f"a latency on target {there.name!r} cannot be measured here, on {detect().name!r}; run the "
            "search there, or give a budget of size"
        )
    margin = -min_accuracy / 100
    if confirm is None:
        chosen_by, held_back = halves(data.validation, base.seed)
    else:
        chosen_by, held_back = list(data.validation), list(confirm)
    _check_power(chosen_by, held_back, margin)
    folder = Path(out)
    with _held_alone(folder):
        running = SearchRun(
            model=model,
            teacher=teacher,
            base=base,
            data=replace(data, validation=chosen_by),
            target=there,
            folder=folder,
            count=trials,
            progress=progress or (lambda _: None),
        )
        running.begin(wanted, margin)
        running.go_on()
        return running.conclude(held_back)


def halves(batches: Iterable[Batch], seed: int) -> tuple[list[Batch], list[Batch]]:
    """Splits labelled batches in two, class by class, without joining them.

    Raises:
        DataError: They are no batches.
    """
    parts: tuple[list[Batch], list[Batch]] = ([], [])
    turns: dict[int, int] = {}
    with own_randomness():
        torch.manual_seed(seed)
        for batch in batches:
            inputs, labels = tensors(batch, torch.device("cpu"))
            sides = []
            for label in labels.tolist():
                turns[label] = turns.get(label, len(turns) % 2) + 1  # an odd one out goes left or right
                sides.append(turns[label] % 2)
            for side, part in enumerate(parts):
                rows = torch.tensor(sides) == side
                if rows.any():
                    part.append((map_inputs(inputs, _taker(rows)), labels[rows]))
    return parts


def _taker(rows: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda value: value[rows]


def _checked_budgets(budgets: Sequence[Budget | str]) -> dict[Quantity, Budget]:
    read = [each if isinstance(each, Budget) else Budget.parse(each) for each in budgets]
    wanted = {each.quantity: each for each in read}
    if not read or len(wanted) < len(read):
        raise ValueError("give one budget or more, and one for each quantity at most")
    return wanted


def _check_power(chosen_by: Sequence[Batch], held_back: Sequence[Batch], margin: float) -> None:
    """Refuses a search whose every answer would be "cannot tell"."""
    counts = [sum(len(labels) for _, labels in part) for part in (chosen_by, held_back)]
    fewest = min(counts)
    if fewest and paired_interval(0, 0, fewest)[0] > -margin:
        return
    needed = max(fewest, 1)
    while paired_interval(0, 0, needed)[0] <= -margin:
        needed = needed + max(1, needed // 50)
    best = f"reach {100 * paired_interval(0, 0, fewest)[0]:.1f} points" if fewest else "say nothing"
    raise DataError(
        f"the validation data is too small to tell a loss of {100 * margin:g} points: trials are chosen by "
        f"{counts[0]} samples and the winner is confirmed on {counts[1]}, whose interval would {best} even "
        f"if every decision stayed as it is; give about {needed:,} for each, or allow a larger loss"
    )


@contextmanager
def _held_alone(folder: Path) -> Iterator[None]:
    """Keeps a second process out of a folder; a kill frees it."""
    if folder.exists() and not (folder / BEGUN).exists() and {p.name for p in folder.iterdir()} - {".lock"}:
        raise SearchError(f"{folder}: holds something else than a search; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SearchError(f"{folder}: another search is running there") from None
        yield
