"""What the commands share: JSON beside the human output, progress bars, exit codes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as ProgressBar

from edgewright.errors import DemoError, ExportError, SdkError
from edgewright.progress import OnProgress, Progress, Remaining
from edgewright_device import DeviceError
from edgewright_ota import OtaError

DONE, DID_NOT_HOLD, BAD_USE, STOPPED = 0, 1, 2, 130
EXPORT_SHARES = {"trace": 4.0, "calibrate": 1.0, "quantize": 1.0, "write": 0.5}
"""What the steps of an export take, roughly; beside one pass through a small network's training data."""

JsonOption = Annotated[
    str | None, typer.Option("--json", metavar="FILE|-", help="Also write the result as JSON; - is stdout.")
]


def console_for(json_to: str | None) -> Console:
    """Where people read: stdout, or stderr when stdout carries JSON."""
    return Console(stderr=json_to == "-", highlight=False, soft_wrap=True)


def emit(json_to: str | None, data: Mapping[str, Any]) -> None:
    """Writes a command's result as JSON to a file or to stdout."""
    if json_to is None:
        return
    text = json.dumps(data, indent=1) + "\n"
    if json_to == "-":
        sys.stdout.write(text)
        return
    path = Path(json_to)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")


def check_writable(out: Path) -> None:
    """Refuses, before any work, a file that could not be written after it.

    Raises:
        ExportError: It is a folder, or lies in none that may be written to.
    """
    above = next(p for p in out.absolute().parents if p.exists())
    if out.is_dir() or not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise ExportError(f"{out}: a file cannot be written there; choose another place")


def noting(notes: list[str], progress: OnProgress) -> OnProgress:
    """Shows progress, and keeps what it notes."""

    def show(report: Progress) -> None:
        if report.note:
            notes.append(report.note)
        progress(report)

    return show


@contextmanager
def progress_bar(console: Console, shares: Mapping[str, float] | None = None) -> Iterator[OnProgress]:
    """One bar for the step that runs, with the time left; it goes away at the end.

    Args:
        console: Where.
        shares: What each step of the whole job takes, in any unit (see `Remaining`); without it, the time
            left is that of the step.
    """
    bar = ProgressBar(
        TextColumn("{task.description:<28}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[left]}"),
        TextColumn("{task.fields[metrics]}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task("", total=1, metrics="", left="")

        def show(progress: Progress) -> None:
            metrics = "  ".join(f"{name} {value:.4g}" for name, value in progress.metrics.items())
            bar.update(
                task,
                description=progress.step,
                completed=progress.done,
                total=progress.total,
                metrics=metrics,
                left="" if progress.remaining_s is None else _left(progress.remaining_s),
            )

        yield Remaining(show, shares or {})


def _left(remaining_s: float) -> str:
    minutes, seconds = divmod(round(remaining_s), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02} left" if hours else f"{minutes}:{seconds:02} left"


def run(app: typer.Typer | Callable[..., Any]) -> None:
    """Runs a command; what the world got wrong becomes one line on stderr and exit code 2."""
    try:
        app()
    except DemoError as error:
        sys.stderr.write(f"the demo stopped: {_one_line(error)}\n")
        raise SystemExit(DID_NOT_HOLD) from None
    except (SdkError, DeviceError, OtaError, OSError) as error:
        sys.stderr.write(f"error: {_one_line(error)}\n")
        raise SystemExit(BAD_USE) from None
    except SystemExit as end:
        if end.code == STOPPED:  # typer's answer to Ctrl-C
            sys.stderr.write("stopped\n")
        raise


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
