"""What a search found: the Pareto front of accuracy and cost, as a table, a picture and JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgewright.budgets import Quantity, shown
from edgewright.durable import write_whole
from edgewright.fidelity import Fidelity, described
from edgewright.recipe import Recipe
from edgewright.search_trials import Demands, Trial, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.table import Table

Outcome = Literal["held", "not confirmed", "cannot tell", "not met"]

INK, DIM, GRID = "#1f2937", "#9ca3af", "#e5e7eb"
HELD, UNSURE, MISSED = "#0f766e", "#b45309", "#9ca3af"


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchReport:
    """What a search found.

    Attributes:
        folder: Where the trials are.
        demands: What had to hold.
        baseline: What the model costs in INT8 without any other step, by quantity.
        trials: All of them, by number.
        confirmed: What the winner keeps on samples that no trial was chosen by; None without a winner.
    """

    folder: Path
    demands: Demands
    baseline: Mapping[Quantity, float]
    trials: tuple[Trial, ...]
    confirmed: Fidelity | None = None

    @property
    def winner(self) -> Trial | None:
        """The trial that holds and has surely kept most accuracy, or None."""
        return self.demands.winner(self.trials)

    @property
    def nearest(self) -> Trial | None:
        """The trial that misses least; None where not one was measured."""
        return self.demands.nearest(self.trials)

    @property
    def front(self) -> tuple[Trial, ...]:
        """The trials that no other beats, the cheapest first. Their models are kept."""
        return self.demands.front(self.trials)

    @property
    def outcome(self) -> Outcome:
        """What came of it: "held" only if the winner's accuracy held on the other samples too."""
        if self.confirmed is not None:
            again = self.confirmed.loses_less_than(self.demands.margin)
            return "held" if again else "cannot tell" if again is None else "not confirmed"
        return "cannot tell" if any(t.status == "cannot tell" for t in self.trials) else "not met"

    def place(self, trial: Trial) -> Path:
        """The folder of a trial: its recipe, what it found, and, on the front, artifact and model."""
        return self.folder / "trials" / f"{trial.number:03d}"

    def recipe(self, trial: Trial) -> Recipe:
        """The recipe of a trial.

        Raises:
            RecipeError: It failed before there was one.
        """
        return Recipe.from_toml(trial.recipe + "\n")

    def sentence(self) -> str:
        """What came of it, for people."""
        winner, nearest = self.winner, self.nearest
        if winner is not None and self.confirmed is not None:
            told = described(self.confirmed)
            verdict = {
                "held": "holds, confirmed",
                "cannot tell": "holds, but more samples or a larger loss are needed to confirm it",
                "not confirmed": "held by luck alone, as is seen",
            }[self.outcome]
            return f"trial {winner.number} {verdict} on samples that no trial was chosen by: {told}"
        if nearest is None or nearest.fidelity is None:
            return "no trial could be measured whole"
        costs = ", ".join(shown(name, nearest.costs[name].value) for name in self.demands.limits)
        doubt = (
            "it cannot be told whether any trial holds" if self.outcome == "cannot tell" else "no trial holds"
        )
        untrained = " (not trained)" if nearest.status == "stopped" else ""
        found = f"trial {nearest.number}{untrained} with {costs}, {described(nearest.fidelity)}"
        return f"{doubt}; the best that could: {found}"

    def to_table(self) -> dict[str, Any]:
        """All of it, as JSON has it."""
        winner, nearest = self.winner, self.nearest
        return {
            "outcome": self.outcome,
            "sentence": self.sentence(),
            "winner": None if winner is None else winner.number,
            "nearest": None if nearest is None else nearest.number,
            "front": [trial.number for trial in self.front],
            "min_accuracy_points": -100 * self.demands.margin,
            "limits": dict(self.demands.limits),
            "reference_accuracy": self.demands.reference_accuracy,
            "baseline": dict(self.baseline),
            "confirmed": None if self.confirmed is None else plain(asdict(self.confirmed)),
            "trials": [plain(asdict(trial)) for trial in self.trials],
        }

    def write(self, *, picture: bool = True) -> None:
        """Writes pareto.json, and pareto.png if there is a point to show, into the folder."""
        write_whole(self.folder / "pareto.json", (json.dumps(self.to_table(), indent=1) + "\n").encode())
        if picture and any(trial.fidelity is not None for trial in self.trials):
            draw(self, self.folder / "pareto.png")


def front_table(report: SearchReport) -> Table:
    """The front as a table for a terminal, the winner marked."""
    from rich.table import Table

    demands = report.demands
    allowed = f"at least {-100 * demands.margin:+g}"
    table = Table(title="Pareto front", title_justify="left")
    table.add_column("trial", justify="right")
    for name, limit in demands.limits.items():
        table.add_column(f"{name}\nat most {shown(name, limit)}", justify="right")
    table.add_column(f"accuracy, points\n{allowed}", justify="right")
    for title in ("flipped", "SQNR"):
        table.add_column(title, justify="right")
    table.add_column("steps")
    table.add_column("verdict")
    for trial in report.front:
        kept = trial.fidelity
        assert kept is not None
        low, high = (100 * end for end in kept.interval)
        color = {"held": "green", "not met": "red"}.get(trial.status, "yellow")
        table.add_row(
            str(trial.number),
            *(shown(name, trial.costs[name].value) for name in demands.limits),
            f"{100 * kept.difference:+.2f} ({low:+.2f} to {high:+.2f})",
            f"{100 * kept.flip_rate:.2f} %",
            f"{kept.sqnr_db:.1f} dB",
            steps_in_words(trial, report.trials),
            f"[{color}]{trial.status}[/]" + (" ←" if trial == report.winner else ""),
        )
    return table


def steps_in_words(trial: Trial, among: Sequence[Trial]) -> str:
    """What a trial chose where not all of them chose the same."""
    words: dict[str, list[str]] = {}
    for name, value in trial.point.items():
        section, _, key = name.partition(".")
        said = words.setdefault(section, []) if value is not False else []
        if key and any(other.point.get(name, value) != value for other in among):
            said.append(value if isinstance(value, str) else f"{key} {value:g}")
    return "; ".join(f"{section} {', '.join(said)}".strip() for section, said in words.items())


def draw(report: SearchReport, path: Path) -> None:
    """Draws all trials, accuracy over each cost, with their intervals and the front.

    Args:
        report: What was found.
        path: A .png file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    limits = report.demands.limits
    figure = Figure(figsize=(6.8 * len(limits) + 0.6, 4.8), dpi=150, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(limits), squeeze=False, sharey=True)[0]
    for axes, (quantity, limit) in zip(panels, limits.items(), strict=True):
        _panel(axes, report, quantity, limit)
    panels[0].set_ylabel("accuracy against the float model, points")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, format="png")
    temporary.replace(path)


def _panel(axes: Axes, report: SearchReport, quantity: Quantity, limit: float) -> None:
    scale, unit = _unit(quantity, max(t.costs[quantity].value for t in report.trials if quantity in t.costs))
    demands, front = report.demands, report.front
    axes.set_facecolor("white")
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(DIM)
    axes.tick_params(colors=INK, labelsize=9)
    axes.axhline(-100 * demands.margin, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.axvline(limit * scale, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    if len(front) > 1:
        steps = sorted(
            (t.costs[quantity].value * scale, 100 * t.fidelity.difference) for t in front if t.fidelity
        )
        axes.plot(
            *zip(*steps, strict=True), color=HELD, linewidth=1.4, alpha=0.55, label="Pareto front", zorder=2
        )
    shown_labels: set[str] = set()
    for trial in report.trials:
        if trial.fidelity is None or quantity not in trial.costs:
            continue
        label, color, marker = _style(trial)
        on_front = trial in front
        x, y = trial.costs[quantity].value * scale, 100 * trial.fidelity.difference
        cost = trial.costs[quantity]
        low, high = (100 * end for end in trial.fidelity.interval)
        axes.errorbar(
            x,
            y,
            xerr=[[x - cost.low * scale], [cost.high * scale - x]],
            yerr=[[y - low], [high - y]],
            fmt=marker,
            color=color,
            ecolor=color,
            elinewidth=1.0 if on_front else 0.6,
            markersize=6.5 if on_front else 4.5,
            markeredgecolor="white",
            markeredgewidth=0.8,
            alpha=1.0 if on_front else 0.35,
            zorder=4 if on_front else 3,
            label=None if label in shown_labels else label,
        )
        shown_labels.add(label)
    winner = report.winner
    if winner is not None and winner.fidelity is not None:
        x, y = winner.costs[quantity].value * scale, 100 * winner.fidelity.difference
        axes.plot(
            x,
            y,
            "o",
            markersize=13,
            markerfacecolor="none",
            markeredgecolor=HELD,
            markeredgewidth=1.6,
            zorder=5,
        )
        axes.annotate(
            f"winner: trial {winner.number}",
            (x, y),
            (10, 12),
            textcoords="offset points",
            color=HELD,
            fontsize=9.5,
            fontweight="bold",
        )
    axes.set_xlabel(f"{'latency of one call' if quantity == 'latency' else 'size of the artifact'}, {unit}")
    axes.annotate(
        f"at most {shown(quantity, limit)}",
        (limit * scale, 1.0),
        (4, -4),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        va="top",
        fontsize=8.5,
        color=INK,
    )
    axes.annotate(
        f"at least {-100 * demands.margin:+g} points",
        (1.0, -100 * demands.margin),
        (-2, 3),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        ha="right",
        fontsize=8.5,
        color=INK,
    )


def _style(trial: Trial) -> tuple[str, str, str]:
    """Label, colour and marker."""
    if trial.status == "held":
        return "holds", HELD, "o"
    if trial.status == "cannot tell":
        return "cannot tell", UNSURE, "D"
    return (
        ("not trained: over a budget", MISSED, "x")
        if trial.status == "stopped"
        else ("does not hold", MISSED, "s")
    )


def _unit(quantity: Quantity, largest: float) -> tuple[float, str]:
    if quantity == "size":
        return (1e-6, "MB") if largest >= 1e6 else (1e-3, "kB")
    return (1.0, "ms") if largest >= 1 else (1e3, "µs")
