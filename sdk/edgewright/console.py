"""What the commands share: JSON beside the human output, progress bars, exit codes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar

from edgewright.errors import DemoError, SdkError
from edgewright.progress import OnProgress, Progress
from edgewright_device import DeviceError
from edgewright_ota import OtaError

DONE, DID_NOT_HOLD, BAD_USE, STOPPED = 0, 1, 2, 130

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


@contextmanager
def progress_bar(console: Console) -> Iterator[OnProgress]:
    """One bar for the step that runs; it goes away at the end."""
    bar = ProgressBar(
        TextColumn("{task.description:<28}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[metrics]}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task("", total=1, metrics="")

        def show(progress: Progress) -> None:
            metrics = "  ".join(f"{name} {value:.4g}" for name, value in progress.metrics.items())
            bar.update(
                task,
                description=progress.step,
                completed=progress.done,
                total=progress.total,
                metrics=metrics,
            )

        yield show


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
