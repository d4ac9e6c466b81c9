"""Every action of the studio, as one table: menus, toolbar, rail and shortcut sheet are built from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from PySide6.QtGui import QAction, QActionGroup, QKeySequence
from PySide6.QtWidgets import QMenu, QMenuBar, QWidget


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionSpec:
    """One action.

    Attributes:
        id: Stable name, "menu.verb".
        text: In menus, with its mnemonic.
        short: On buttons.
        tip: One sentence for the tooltip, the status bar and the shortcut sheet.
        menu: Title of the menu that holds it.
        shortcut: As QKeySequence reads it; empty where the menu alone is enough.
        icon: Name in `icons/`.
        toolbar: Whether the toolbar shows it.
        group: Actions of one group exclude each other and are checkable.
        checkable: It is on or off.
        gap_before: A line separates it from the action before it.
    """

    id: str
    text: str
    short: str
    tip: str
    menu: str
    icon: str
    shortcut: str = ""
    toolbar: bool = False
    group: str = ""
    checkable: bool = False
    gap_before: bool = False


ACTIONS = (
    ActionSpec(
        id="file.open",
        text="&Open model…",
        short="Open",
        tip="Open an ONNX model, an exported PyTorch program or a Python file",
        menu="&File",
        shortcut="Ctrl+O",
        icon="open",
        toolbar=True,
    ),
    ActionSpec(
        id="file.open_artifact",
        text="Open &artifact…",
        short="Open artifact",
        tip="Open an artifact, the directory that an export writes",
        menu="&File",
        shortcut="Ctrl+Shift+O",
        icon="artifact",
        toolbar=True,
    ),
    ActionSpec(
        id="file.example",
        text="Open the &digits example",
        short="Digits example",
        tip="Compress a small network on real handwritten digits, from start to verified artifact",
        menu="&File",
        shortcut="Ctrl+D",
        icon="digits",
        toolbar=True,
    ),
    ActionSpec(
        id="file.quit",
        text="&Quit",
        short="Quit",
        tip="Close the studio; running jobs are cancelled",
        menu="&File",
        shortcut="Ctrl+Q",
        icon="quit",
        gap_before=True,
    ),
    ActionSpec(
        id="recipe.load",
        text="&Load recipe…",
        short="Load recipe",
        tip="Fill the form from a recipe file (TOML)",
        menu="&Recipe",
        shortcut="Ctrl+L",
        icon="load",
    ),
    ActionSpec(
        id="recipe.save",
        text="&Save recipe…",
        short="Save recipe",
        tip="Save the form as a recipe file (TOML)",
        menu="&Recipe",
        shortcut="Ctrl+S",
        icon="save",
    ),
    ActionSpec(
        id="job.start",
        text="&Start",
        short="Start",
        tip="Start compressing the open model",
        menu="&Job",
        shortcut="Ctrl+Return",
        icon="start",
        toolbar=True,
        gap_before=True,
    ),
    ActionSpec(
        id="job.cancel",
        text="&Cancel job",
        short="Cancel",
        tip="Cancel the job selected below, or the newest one, and remove its partial output",
        menu="&Job",
        shortcut="Ctrl+.",
        icon="stop",
        toolbar=True,
    ),
    ActionSpec(
        id="result.copy",
        text="&Copy table",
        short="Copy table",
        tip="Copy the result table as tab-separated text, for a spreadsheet",
        menu="R&esult",
        shortcut="Ctrl+Shift+C",
        icon="copy",
    ),
    ActionSpec(
        id="result.export",
        text="&Export as JSON…",
        short="Export JSON",
        tip="Save the result as a JSON file",
        menu="R&esult",
        shortcut="Ctrl+E",
        icon="save",
    ),
    ActionSpec(
        id="result.open",
        text="Open its &artifact",
        short="Open artifact",
        tip="Open the artifact that this result is about",
        menu="R&esult",
        shortcut="Ctrl+Shift+A",
        icon="artifact",
    ),
    ActionSpec(
        id="view.model",
        text="&Model",
        short="Model",
        tip="What the open model is",
        menu="&View",
        shortcut="Ctrl+1",
        icon="model",
        group="pages",
    ),
    ActionSpec(
        id="view.compress",
        text="&Compress",
        short="Compress",
        tip="The recipe, and the job that follows it",
        menu="&View",
        shortcut="Ctrl+2",
        icon="compress",
        group="pages",
    ),
    ActionSpec(
        id="view.compare",
        text="Com&pare",
        short="Compare",
        tip="The variants of the model, side by side",
        menu="&View",
        shortcut="Ctrl+3",
        icon="compare",
        group="pages",
    ),
    ActionSpec(
        id="view.inspector",
        text="&Inspector",
        short="Inspector",
        tip="Show or hide the details of what is selected",
        menu="&View",
        shortcut="Ctrl+I",
        icon="inspector",
        checkable=True,
        gap_before=True,
    ),
    ActionSpec(
        id="view.jobs",
        text="&Jobs",
        short="Jobs",
        tip="Show or hide the jobs and their log",
        menu="&View",
        shortcut="Ctrl+J",
        icon="jobs",
        checkable=True,
    ),
    ActionSpec(
        id="view.next_pane",
        text="&Next pane",
        short="Next pane",
        tip="Move the keyboard focus to the next pane",
        menu="&View",
        shortcut="F6",
        icon="pane",
    ),
    ActionSpec(
        id="view.theme",
        text="&Light or dark",
        short="Light or dark",
        tip="Switch between light and dark",
        menu="&View",
        shortcut="Ctrl+T",
        icon="theme",
        gap_before=True,
        toolbar=True,
    ),
    ActionSpec(
        id="view.theme_system",
        text="&Follow the desktop",
        short="Follow the desktop",
        tip="Take light or dark from the desktop",
        menu="&View",
        icon="theme",
    ),
    ActionSpec(
        id="help.shortcuts",
        text="&Keyboard shortcuts",
        short="Shortcuts",
        tip="Show every action with its shortcut",
        menu="&Help",
        shortcut="F1",
        icon="keyboard",
    ),
    ActionSpec(
        id="help.about",
        text="&About Edgewright Studio",
        short="About",
        tip="Show the versions, for a bug report",
        menu="&Help",
        icon="about",
    ),
)


def build(owner: QWidget, handlers: Mapping[str, Callable[[], None]]) -> dict[str, QAction]:
    """Makes the actions by id; `handlers` holds exactly one function for each."""
    if set(handlers) != {s.id for s in ACTIONS}:
        raise ValueError(f"handlers and actions differ: {set(handlers) ^ {s.id for s in ACTIONS}}")
    actions: dict[str, QAction] = {}
    groups: dict[str, QActionGroup] = {}
    for spec in ACTIONS:
        action = QAction(spec.text, owner)
        action.setObjectName(spec.id)
        action.setIconText(spec.short)
        action.setStatusTip(spec.tip)
        action.setToolTip(f"{spec.tip} ({spec.shortcut})" if spec.shortcut else spec.tip)
        action.setCheckable(spec.checkable or bool(spec.group))
        if spec.shortcut:
            action.setShortcut(QKeySequence(spec.shortcut))
        if spec.group:
            groups.setdefault(spec.group, QActionGroup(owner)).addAction(action)
        if spec.id == "file.quit":
            action.setMenuRole(QAction.MenuRole.QuitRole)
        handler = handlers[spec.id]
        action.triggered.connect(lambda _checked=False, run=handler: run())
        # Shortcuts work wherever the focus is, also when the menu bar is hidden.
        owner.addAction(action)
        actions[spec.id] = action
    return actions


def fill_menus(bar: QMenuBar, actions: Mapping[str, QAction]) -> None:
    """Puts every action into its menu, in the table's order."""
    menus: dict[str, QMenu] = {}
    for spec in ACTIONS:
        menu = menus.get(spec.menu)
        if menu is None:
            menu = menus[spec.menu] = bar.addMenu(spec.menu)
        elif spec.gap_before:
            menu.addSeparator()
        menu.addAction(actions[spec.id])
