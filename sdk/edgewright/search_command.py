"""`edgewright compress --budget`: a search, and its winner as any other recipe's result."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import typer
from rich.markup import escape

from edgewright.compress_command import Wanted, carry_out, check_out
from edgewright.console import DID_NOT_HOLD, check_writable, console_for, emit, progress_bar
from edgewright.durable import write_whole
from edgewright.errors import DataError, SearchError
from edgewright.search_budgets import Budget
from edgewright.search_pareto import SearchReport, front_table

if TYPE_CHECKING:
    from torch import nn

    from edgewright.data import Batch, Data

TRIALS = 30
MIN_ACCURACY = -1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a command line asks of a search, as `searching.search` has it.

    Attributes:
        budgets: What may be spent.
        min_accuracy: Points, below 0.
        trials: How many.
        confirm: An .npz to confirm the winner on, or None.
        folder: Where the trials go.
    """

    budgets: tuple[Budget, ...]
    min_accuracy: float
    trials: int
    confirm: Path | None
    folder: Path

    @classmethod
    def parsed(
        cls,
        budgets: Sequence[str],
        min_accuracy: float | None,
        trials: int | None,
        confirm: Path | None,
        folder: Path,
    ) -> Self:
        """Reads what was given.

        Raises:
            typer.BadParameter: It cannot be asked.
        """
        try:
            wanted = tuple(Budget.parse(text) for text in budgets)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="'--budget'") from None
        points = MIN_ACCURACY if min_accuracy is None else min_accuracy
        if not points < 0:
            raise typer.BadParameter("give points below 0, such as -0.5", param_hint="'--min-accuracy'")
        return cls(
            budgets=wanted,
            min_accuracy=points,
            trials=TRIALS if trials is None else trials,
            confirm=confirm,
            folder=folder,
        )


def run_search(wanted: Wanted, asked: Asked, json_to: str | None) -> int:
    """Searches, shows the front, and writes the winner where it held.

    Returns:
        The exit code: 1 where nothing held for sure.

    Raises:
        SdkError: It cannot be done; the message says why.
    """
    import edgewright as ew
    from edgewright.data import load_data
    from edgewright.searching import search

    console = console_for(json_to)
    check_out(wanted)
    check_writable(wanted.out.with_suffix(".toml"))
    if wanted.model.endswith(".onnx"):
        raise SearchError(f"{wanted.model}: a search trains and prunes; give the model as nn.Module or .pt2")
    if (
        "qat" in (wanted.recipe.search.sections if wanted.recipe.search else ())
        and wanted.out.suffix != ".ew"
    ):
        raise SearchError(f"{wanted.out}: what [search.qat] may train is an artifact; name it NAME.ew")
    if wanted.locked is not None:
        raise typer.BadParameter("a lock is of one recipe, not of a search", param_hint="'--locked'")
    confirm = _batches(asked.confirm) if asked.confirm else None
    data = load_data(wanted.data)
    seed = wanted.recipe.seed
    model = ew.load_model(wanted.model, wanted.weights, seed=seed)
    teacher = ew.load_model(wanted.teacher, wanted.teacher_weights, seed=seed) if wanted.teacher else None
    if (asked.folder / "trials").is_dir():
        console.print(f"going on with the search in {escape(str(asked.folder))}")
    with progress_bar(console) as progress:
        report = search(
            model,
            wanted.recipe,
            data=data,
            budgets=asked.budgets,
            out=asked.folder,
            min_accuracy=asked.min_accuracy,
            trials=asked.trials,
            teacher=teacher,
            target=wanted.target,
            confirm=confirm,
            progress=progress,
        )
    console.print(front_table(report))
    color = {"held": "green", "cannot tell": "yellow"}.get(report.outcome, "red")
    console.print(f"[{color}]{escape(report.sentence())}[/]")
    console.print(f"trials and front: {escape(str(asked.folder))}, pareto.png")
    told: dict[str, Any] = {"search": report.to_table()}
    code = DID_NOT_HOLD
    if report.outcome == "held":
        code, written = _write_winner(wanted, report, model, data, teacher, console)
        told |= written
    emit(json_to, told)
    return code


def _write_winner(
    wanted: Wanted,
    report: SearchReport,
    model: nn.Module,
    data: Data,
    teacher: nn.Module | None,
    console: Any,
) -> tuple[int, dict[str, Any]]:
    """Writes the winner as `compress` writes its recipe's result: the steps that it took are done already."""
    from edgewright.checkpoint import Checkpoint
    from edgewright.compression import lock_of

    winner = report.winner
    assert winner is not None
    recipe = report.recipe(winner)
    kept = wanted.checkpoint or wanted.out.with_suffix(".checkpoint")
    Checkpoint.open(kept, lock_of(model, recipe, data, teacher))
    for path in report.place(winner).glob("steps/*.safetensors"):
        shutil.copyfile(path, kept / path.name)
    code, told = carry_out(replace(wanted, recipe=recipe), console)
    path = wanted.out.with_suffix(".toml")
    write_whole(path, recipe.to_toml().encode())
    console.print(f"wrote {escape(str(path))}")
    return code, {**told, "recipe": str(path)}


def _batches(path: Path) -> list[Batch]:
    """Labelled samples of an .npz, as batches."""
    import numpy as np

    from edgewright.data import Data

    try:
        with np.load(path, allow_pickle=False) as file:
            x, y = file["x"], file["y"]
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise DataError(f"{path}: must be an .npz with x and y ({error})") from None
    return list(Data.from_arrays(x, y, x, y).validation)
