"""What a search found: the Pareto front of accuracy and cost, as a table, a picture and JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgewright.durable import write_whole
from edgewright.fidelity import Fidelity, described
from edgewright.recipe import Recipe
from edgewright.search_budgets import Quantity, shown
from edgewright.search_trials import Demands, Trial, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.table import Table

Outcome = Literal["held", "not confirmed", "cannot tell", "not met"]

INK, DIM, GRID = "#1f2937", "#9ca3af", "#e5e7eb"
HELD, UNSURE, MISSED, FRONT = "#0f766e", "#b45309", "#6b7280", "#2563eb"


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

    What lost far more than may be lost is drawn at the lower edge, for it would hide all the rest.

    Args:
        report: What was found.
        path: A .png file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    limits = report.demands.limits
    figure = Figure(figsize=(7.0 * len(limits) + 0.6, 4.8), dpi=150, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(limits), squeeze=False, sharey=True)[0]
    for axes, (quantity, limit) in zip(panels, limits.items(), strict=True):
        _panel(axes, report, quantity, limit)
    panels[0].set_ylabel("accuracy against the float model, points", color=INK)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, format="png")
    temporary.replace(path)


def _panel(axes: Axes, report: SearchReport, quantity: Quantity, limit: float) -> None:
    """One cost: the allowed region, the trials, the front and the winner."""
    measured = [t for t in report.trials if t.fidelity is not None and quantity in t.costs]
    scale, unit = _unit(quantity, max(t.costs[quantity].value for t in measured))
    low, high = _heights(report, measured)
    costs = [t.costs[quantity].value * scale for t in measured] + [limit * scale]
    room = 0.08 * (max(costs) - min(costs) or max(costs))
    axes.set_xlim(min(costs) - room, max(costs) + room)
    axes.set_ylim(low, high)
    _frame(axes)
    margin = -100 * report.demands.margin
    axes.fill_between([min(costs) - room, limit * scale], margin, high, color=HELD, alpha=0.07, linewidth=0)
    axes.plot([min(costs) - room, limit * scale, limit * scale], [margin, margin, high], color=HELD, lw=1)
    axes.annotate(
        f"allowed: at most {shown(quantity, limit)}, at least {margin:+g} points",
        (min(costs) - room, high),
        (6, -6),
        textcoords="offset points",
        va="top",
        fontsize=8.5,
        color=HELD,
    )
    _front_line(axes, report, quantity, scale)
    named: set[str] = set()
    for trial in measured:
        far = 100 * (trial.fidelity.difference if trial.fidelity else 0) < low
        name = "" if far else _style(trial)[0]
        _mark(
            axes,
            trial,
            quantity,
            scale,
            low,
            on_front=trial in report.front,
            name="" if name in named else name,
        )
        named.add(name)
    axes.plot([], [], "v", color=MISSED, linestyle="none", label="far below")
    winner = report.winner
    if winner is not None and winner.fidelity is not None:
        x, y = winner.costs[quantity].value * scale, 100 * winner.fidelity.difference
        axes.scatter([x], [y], s=190, facecolors="none", edgecolors=HELD, linewidths=1.6, zorder=5)
        axes.annotate(
            f"winner: trial {winner.number}",
            (x, y),
            (12, -16),
            textcoords="offset points",
            color=HELD,
            fontsize=9.5,
            fontweight="bold",
        )
    what = "latency of one call" if quantity == "latency" else "size of the artifact"
    axes.set_xlabel(f"{what}, {unit}", color=INK)


def _heights(report: SearchReport, measured: Sequence[Trial]) -> tuple[float, float]:
    """The lowest and highest accuracy that is drawn to scale, points."""
    margin = 100 * report.demands.margin
    ends = [100 * end for t in measured if t.fidelity is not None for end in t.fidelity.interval]
    return max(min(ends), -2 * margin) - 0.3 * margin, max(*ends, 0.5 * margin) + 0.35 * margin


def _frame(axes: Axes) -> None:
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(DIM)
    axes.tick_params(colors=INK, labelsize=9)


def _front_line(axes: Axes, report: SearchReport, quantity: Quantity, scale: float) -> None:
    """The best that is to be had for each cost, as a stair."""
    points = sorted(
        (t.costs[quantity].value * scale, 100 * t.fidelity.difference) for t in report.front if t.fidelity
    )
    if not points:
        return
    xs = [x for x, _ in points] + [axes.get_xlim()[1]]
    ys = [max(y for _, y in points[: place + 1]) for place in range(len(points))]
    axes.step(xs, [*ys, ys[-1]], where="post", color=FRONT, lw=1.6, alpha=0.8, label="Pareto front", zorder=2)


def _mark(
    axes: Axes, trial: Trial, quantity: Quantity, scale: float, low: float, *, on_front: bool, name: str
) -> None:
    """A trial with its intervals; at the lower edge where it is far below."""
    assert trial.fidelity is not None
    _, color, marker = _style(trial)
    cost, alpha = trial.costs[quantity], 1.0 if on_front else 0.4
    x, y = cost.value * scale, 100 * trial.fidelity.difference
    bottom, top = (100 * end for end in trial.fidelity.interval)
    if y < low:
        axes.plot([x], [low], "v", color=MISSED, alpha=alpha, markersize=6, clip_on=False, zorder=3)
        return
    axes.errorbar(
        x,
        y,
        xerr=[[x - cost.low * scale], [cost.high * scale - x]],
        yerr=[[y - bottom], [top - y]],
        fmt=marker,
        color=color,
        elinewidth=1.0 if on_front else 0.7,
        markersize=6.5 if on_front else 5,
        markeredgecolor="white" if marker != "x" else color,
        markeredgewidth=0.8,
        alpha=alpha,
        zorder=4 if on_front else 3,
        label=name or None,
    )


def _style(trial: Trial) -> tuple[str, str, str]:
    """What its marker is called, its colour and its shape."""
    if trial.status == "held":
        return "holds", HELD, "o"
    if trial.status == "cannot tell":
        return "cannot tell", UNSURE, "D"
    if trial.status == "stopped":
        return "stopped before or while it trained", MISSED, "x"
    return "does not hold", MISSED, "s"


def _unit(quantity: Quantity, largest: float) -> tuple[float, str]:
    if quantity == "size":
        return (1e-6, "MB") if largest >= 1e6 else (1e-3, "kB")
    return (1.0, "ms") if largest >= 1 else (1e3, "µs")
