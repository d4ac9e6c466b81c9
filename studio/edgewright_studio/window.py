"""The window: menus, toolbar, rail, pages, inspector, jobs, and what each action does."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from PySide6.QtCore import QSize, Qt, QTimer
from PySide6.QtGui import QCloseEvent, QDragEnterEvent, QDragLeaveEvent, QDropEvent, QIcon
from PySide6.QtWidgets import (
    QApplication,
    QDockWidget,
    QFileDialog,
    QHBoxLayout,
    QLabel,
    QMainWindow,
    QStackedWidget,
    QToolBar,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

import edgewright as ew
from edgewright_studio import actions, theme
from edgewright_studio.background import Background
from edgewright_studio.compress_page import COMPRESSIBLE, CompressPage, Functions
from edgewright_studio.dialogs import ShortcutSheet, TextDialog, versions
from edgewright_studio.document import Document, digits_example, identify
from edgewright_studio.errors import Problem, StudioError
from edgewright_studio.inspector import Inspector
from edgewright_studio.jobs import Cancelled, End, Event, Failed, Finished, Job, Progressed, Task
from edgewright_studio.jobs_panel import JobsPanel
from edgewright_studio.model_page import ModelPage
from edgewright_studio.page import EmptyState, Page, restyle
from edgewright_studio.result_page import ResultPage
from edgewright_studio.results import Result, write_json
from edgewright_studio.settings import Settings

TITLE = "Edgewright Studio"
PAGES = ("model", "compress", "compare")


class MainWindow(QMainWindow):
    """One window, one open model.

    Args:
        settings: What is remembered.
        examples: Directory that the built-in example writes its artifact to; made when it is needed.
        functions: What jobs run.
    """

    def __init__(self, settings: Settings, *, examples: Path, functions: Functions | None = None) -> None:
        super().__init__()
        self.setWindowTitle(TITLE)
        self.setAcceptDrops(True)
        self.setContextMenuPolicy(Qt.ContextMenuPolicy.NoContextMenu)
        self.resize(1280, 820)
        self.setMinimumSize(900, 600)
        # Before there are widgets: they take the font as it is when they are made.
        theme.apply(_application(), theme.colors_for(settings.theme, _application()))
        self._settings = settings
        self._examples = examples
        self._functions = functions or Functions()
        self._folder = examples
        self._ends: dict[Job, Callable[[End], None]] = {}
        self.background = Background(self)
        self.background.happened.connect(self._happened)
        self.actions_by_id = actions.build(self, self._handlers())
        act = self.actions_by_id

        self.model_page = ModelPage()
        self.model_page.set_empty(
            "drop",
            "Drop a model here",
            "An ONNX model, an exported PyTorch program (.pt2), a Python file, or an artifact (.ew). "
            "Or see the whole trip on real handwritten digits first.",
            [act["file.open"], act["file.example"], act["file.open_artifact"]],
        )
        self.compress_page = CompressPage(act, self._functions)
        self.compress_page.set_empty(
            "compress",
            "No model yet",
            "Open a model to compress it by a recipe: distill, prune, fine-tune, quantize, verify.",
            [act["file.open"], act["file.example"]],
        )
        self.result_page = ResultPage(act)
        self.result_page.set_empty(
            "compare",
            "Nothing to compare yet",
            "Run a compress job: accuracy, size, latency and noise of every variant appear here.",
            [act["view.compress"], act["file.example"]],
        )
        self.pages: dict[str, Page] = {
            "model": self.model_page,
            "compress": self.compress_page,
            "compare": self.result_page,
        }
        self.inspector = Inspector()
        self.jobs_panel = JobsPanel()
        self.jobs_panel.cancel_wanted.connect(self._cancel)
        self._stack = QStackedWidget()
        for page in self.pages.values():
            page.show_empty()
            page.selected.connect(self.inspector.show_rows)
            self._stack.addWidget(page)
        self.compress_page.ready_changed.connect(self._refresh_actions)
        self._lay_out()
        self._tint(theme.colors_for(settings.theme, _application()))
        self._show_page("model")
        self._refresh_actions()
        self.restoreGeometry(settings.geometry)
        self.restoreState(settings.panes)
        self._sync_pane_actions()

    @property
    def document(self) -> Document | None:
        """The open model."""
        return self.model_page.document

    @property
    def result(self) -> Result | None:
        """The last result."""
        return self.result_page.result

    def learn_targets(self) -> None:
        """Asks in the background which targets there are; called once the window is on the screen."""

        def learned(end: End) -> None:
            self.compress_page.recipe_form.prepare()
            if isinstance(end, Finished):
                here = str(end.result["here"])
                self.compress_page.job_form.set_targets([str(n) for n in end.result["names"]], here)
                self._target.setText(f"Target: {here}")
            else:
                self._target.setText("Target: unknown")

        self._start(Task(title="Look for targets", function=self._functions.list_targets), learned)

    def open_path(self, path: Path) -> None:
        """Opens a model; the page shows how it goes."""
        path = path.absolute()
        self._show_page("model")
        try:
            identify(path)
            task = Task(
                title=f"Open {path.name}",
                function=self._functions.open_document,
                arguments={"path": str(path)},
            )
            job = self._start(task, lambda end: self._opened(path, end))
        except StudioError as error:
            self.model_page.show_error(error.problem)
            return
        self.jobs_panel.add(job)
        self.model_page.show_busy(f"Reading {path.name}")

    def open_example(self) -> None:
        """Opens the digits example and starts its job at once."""
        if self.compress_page.running:
            self._say("A job is running; wait for it, or cancel it with Ctrl+.")
            return
        try:
            self._examples.mkdir(parents=True, exist_ok=True)
            folder = self._examples
        except OSError:
            folder = Path(tempfile.gettempdir())
        self._show_document(digits_example(), folder)
        self._show_page("compress")
        self.start_job()

    def start_job(self) -> None:
        """Starts what the Compress page describes."""
        if self.compress_page.running:
            return
        self._show_page("compress")
        try:
            job = self._start(self.compress_page.task(), self._job_ended)
        except StudioError as error:
            self.compress_page.show_error(error.problem)
            return
        self.jobs_panel.add(job)
        self.compress_page.begin(job)
        if not self.result_page.has_content():
            self.result_page.show_busy("The job is running; its result comes here")

    # What the actions do.

    def _handlers(self) -> dict[str, Callable[[], None]]:
        return {
            "file.open": self._choose_model,
            "file.open_artifact": self._choose_artifact,
            "file.example": self.open_example,
            "file.quit": lambda: (self.close(), None)[1],
            "recipe.load": self._load_recipe,
            "recipe.save": self._save_recipe,
            "job.start": self.start_job,
            "job.cancel": lambda: self._cancel(self.jobs_panel.running()),
            "result.copy": self._copy_result,
            "result.export": self._export_result,
            "result.open": self._open_result,
            "view.model": lambda: self._show_page("model"),
            "view.compress": lambda: self._show_page("compress"),
            "view.compare": lambda: self._show_page("compare"),
            "view.inspector": lambda: self._toggle(self._inspector_dock),
            "view.jobs": lambda: self._toggle(self._jobs_dock),
            "view.next_pane": self._next_pane,
            "view.theme": self._switch_theme,
            "view.theme_system": lambda: self._set_theme("system"),
            "help.shortcuts": lambda: self._open_dialog(ShortcutSheet(self)),
            "help.about": lambda: self._open_dialog(
                TextDialog(
                    self,
                    f"About {TITLE}",
                    "Takes a trained model to a verified artifact, offline. Bug reports need these versions.",
                    versions(),
                )
            ),
        }

    def _choose_model(self) -> None:
        name, _ = QFileDialog.getOpenFileName(
            self, "Open model", str(self._settings.last_folder), "Models (*.onnx *.pt2 *.py);;All files (*)"
        )
        if name:
            self._settings.last_folder = Path(name).parent
            self.open_path(Path(name))

    def _choose_artifact(self) -> None:
        name = QFileDialog.getExistingDirectory(self, "Open artifact", str(self._settings.last_folder))
        if name:
            self._settings.last_folder = Path(name).parent
            self.open_path(Path(name))

    def _load_recipe(self) -> None:
        name, _ = QFileDialog.getOpenFileName(
            self, "Load recipe", str(self._settings.last_folder), "Recipes (*.toml)"
        )
        if name:
            self.load_recipe(Path(name))

    def load_recipe(self, path: Path) -> None:
        """Fills the recipe form from a file, or says what is wrong with it."""
        self._settings.last_folder = path.parent
        try:
            self.compress_page.recipe_form.load(path)
        except ew.RecipeError as error:
            self.compress_page.show_error(
                Problem(
                    what=f"Cannot load the recipe {path.name}",
                    why=str(error),
                    next_step="Mend the file and load it again; the form is as it was.",
                )
            )
            return
        self.compress_page.banner.hide()
        self._say(f"Recipe {path.name} loaded")

    def _save_recipe(self) -> None:
        name, _ = QFileDialog.getSaveFileName(
            self, "Save recipe", str(self._settings.last_folder / "recipe.toml"), "Recipes (*.toml)"
        )
        if name:
            path = Path(name if name.endswith(".toml") else f"{name}.toml")
            self._write(self.compress_page, path, lambda: self.compress_page.recipe_form.save(path))

    def _export_result(self) -> None:
        result = self.result
        if result is None:
            return
        name, _ = QFileDialog.getSaveFileName(
            self, "Export result", str(self._settings.last_folder / "result.json"), "JSON (*.json)"
        )
        if name:
            path = Path(name if name.endswith(".json") else f"{name}.json")
            self._write(self.result_page, path, lambda: write_json(result, path))

    def _write(self, page: Page, path: Path, write: Callable[[], None]) -> None:
        self._settings.last_folder = path.parent
        try:
            write()
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            page.show_error(
                Problem(
                    what=f"Cannot save {path.name}",
                    why=why,
                    next_step="Mend that, or save it somewhere else.",
                )
            )
            return
        page.banner.hide()
        self._say(f"Saved {path}")

    def _copy_result(self) -> None:
        self.result_page.copy()
        self._say("Table copied")

    def _open_result(self) -> None:
        if self.result is not None:
            self.open_path(Path(self.result.artifact))

    def _cancel(self, job: Job | None) -> None:
        if job is not None:
            job.cancel()
            self._say(f"Cancelling “{job.task.title}”")

    def _switch_theme(self) -> None:
        dark = theme.colors_for(self._settings.theme, _application()) is theme.DARK
        self._set_theme("light" if dark else "dark")

    def _set_theme(self, mode: theme.Mode) -> None:
        self._settings.theme = mode
        colors = theme.colors_for(mode, _application())
        theme.apply(_application(), colors)
        self._tint(colors)

    def _next_pane(self) -> None:
        panes: list[QWidget] = [self._rail, self._stack, self.inspector, self.jobs_panel]
        panes = [p for p in panes if p.isVisible()]
        now = QApplication.focusWidget()
        here = next(
            (i for i, p in enumerate(panes) if now is not None and (p is now or p.isAncestorOf(now))), -1
        )
        for step in range(1, len(panes) + 1):
            pane = panes[(here + step) % len(panes)]
            for widget in [pane, *pane.findChildren(QWidget)]:
                takes = widget.focusPolicy() & Qt.FocusPolicy.TabFocus
                if takes and widget.isVisible() and widget.isEnabled():
                    widget.setFocus(Qt.FocusReason.ShortcutFocusReason)
                    return

    def _open_dialog(self, dialog: ShortcutSheet | TextDialog) -> None:
        dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        dialog.open()

    # Jobs.

    def _start(self, task: Task, ended: Callable[[End], None]) -> Job:
        job = self.background.start(task)
        self._ends[job] = ended
        return job

    def _happened(self, job: Job, event: Event) -> None:
        self.jobs_panel.show_event(job, event)
        if isinstance(event, Progressed) and job is self.compress_page.job:
            self.compress_page.show_progress(job, event)
            self._running.setText(f"{job.task.title}: {100 * event.overall:.0f} %")
        if isinstance(event, End):
            self._ends.pop(job)(event)
        self._refresh_actions()

    def _opened(self, path: Path, end: End) -> None:
        match end:
            case Finished():
                self._show_document(Document.from_json(dict(end.result)), path.parent)
                self.inspector.show_nothing()
            case Failed():
                self.model_page.show_error(end.problem)
            case Cancelled() if self.model_page.has_content():
                self.model_page.show_content()
            case Cancelled():
                self.model_page.show_empty()

    def _job_ended(self, end: End) -> None:
        job = self.compress_page.job
        assert job is not None
        self.compress_page.show_end(job, end)
        self._running.setText("")
        match end:
            case Finished():
                self.result_page.show_result(Result.from_json(end.result))
                self._show_page("compare")
            case Failed():
                self.result_page.show_error(end.problem)
            case Cancelled() if self.result_page.has_content():
                self.result_page.show_content()
            case Cancelled():
                self.result_page.show_empty()
        # A model that was opened while the job ran is next.
        document = self.document
        if document is not None and document.kind in COMPRESSIBLE and document != self.compress_page.document:
            self.compress_page.show_document(document, self._folder)

    # How it looks.

    def _lay_out(self) -> None:
        act = self.actions_by_id
        actions.fill_menus(self.menuBar(), act)
        bar = QToolBar("Toolbar")
        bar.setObjectName("toolbar")
        bar.setMovable(False)
        bar.setIconSize(QSize(20, 20))
        bar.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
        shown = [s for s in actions.ACTIONS if s.toolbar]
        for index, spec in enumerate(shown):
            if index and spec.menu != shown[index - 1].menu:
                if spec.menu == "&View":
                    bar.addWidget(_spring())
                else:
                    bar.addSeparator()
            bar.addAction(act[spec.id])
        for tool in bar.findChildren(QToolButton):
            tool.setFocusPolicy(Qt.FocusPolicy.TabFocus)
        self.addToolBar(bar)

        self._rail = QWidget()
        self._rail.setObjectName("rail")
        rail = QVBoxLayout(self._rail)
        rail.setContentsMargins(8, 12, 8, 12)
        rail.setSpacing(6)
        for name in PAGES:
            tool = QToolButton()
            tool.setDefaultAction(act[f"view.{name}"])
            tool.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextUnderIcon)
            tool.setIconSize(QSize(24, 24))
            tool.setFixedSize(84, 62)
            rail.addWidget(tool)
        rail.addStretch(1)
        self._stack.setObjectName("pages")
        centre = QWidget()
        row = QHBoxLayout(centre)
        row.setContentsMargins(0, 0, 0, 0)
        row.setSpacing(0)
        row.addWidget(self._rail)
        row.addWidget(self._stack, 1)
        # The window begins with no field marked; Tab goes on from here.
        centre.setFocusPolicy(Qt.FocusPolicy.ClickFocus)
        self.setCentralWidget(centre)
        centre.setFocus()

        self.setCorner(Qt.Corner.BottomRightCorner, Qt.DockWidgetArea.RightDockWidgetArea)
        self._inspector_dock = self._dock("Inspector", self.inspector, Qt.DockWidgetArea.RightDockWidgetArea)
        self._jobs_dock = self._dock("Jobs", self.jobs_panel, Qt.DockWidgetArea.BottomDockWidgetArea)
        self.resizeDocks([self._inspector_dock], [270], Qt.Orientation.Horizontal)
        self.resizeDocks([self._jobs_dock], [170], Qt.Orientation.Vertical)

        self._target = QLabel("Target: looking…")
        self._running = QLabel()
        self.statusBar().addPermanentWidget(self._running)
        self.statusBar().addPermanentWidget(self._target)
        self.statusBar().setSizeGripEnabled(False)

    def _dock(self, title: str, widget: QWidget, area: Qt.DockWidgetArea) -> QDockWidget:
        dock = QDockWidget(title)
        dock.setObjectName(f"dock_{title.lower()}")
        dock.setFeatures(QDockWidget.DockWidgetFeature.DockWidgetClosable)
        bar = QWidget()
        bar.setObjectName("dockTitle")
        bar.setProperty("side", "bottom" if area is Qt.DockWidgetArea.BottomDockWidgetArea else "right")
        bar.setAttribute(Qt.WidgetAttribute.WA_StyledBackground)
        row = QHBoxLayout(bar)
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(QLabel(title))
        row.addStretch(1)
        dock.setTitleBarWidget(bar)
        dock.setWidget(widget)
        self.addDockWidget(area, dock)
        return dock

    def _tint(self, colors: theme.Colors) -> None:
        for spec in actions.ACTIONS:
            action = self.actions_by_id[spec.id]
            action.setIcon(theme.icon(spec.icon, colors, checkable=action.isCheckable()))
        self.setWindowIcon(QIcon(theme.pixmap("app", colors.accent, QSize(64, 64))))

    def _show_page(self, name: str) -> None:
        self._stack.setCurrentWidget(self.pages[name])
        self.actions_by_id[f"view.{name}"].setChecked(True)

    def _show_document(self, document: Document, folder: Path) -> None:
        self.model_page.show_document(document)
        # An artifact does not take the place of the model it may have been made from.
        taken = document.kind in COMPRESSIBLE or not self.compress_page.has_content()
        if taken and not self.compress_page.running:
            self.compress_page.show_document(document, folder)
        self._folder = folder
        self.setWindowTitle(f"{document.name} \N{EN DASH} {TITLE}")
        self._refresh_actions()

    def _refresh_actions(self) -> None:
        act = self.actions_by_id
        compressible = self.compress_page.has_content()
        running = self.compress_page.running
        act["job.start"].setEnabled(compressible and not running and not self.compress_page.problem())
        act["job.cancel"].setEnabled(self.jobs_panel.running() is not None)
        act["recipe.load"].setEnabled(compressible and not running)
        act["recipe.save"].setEnabled(compressible)
        for name in ("result.copy", "result.export", "result.open"):
            act[name].setEnabled(self.result is not None)

    def _toggle(self, dock: QDockWidget) -> None:
        dock.setVisible(dock.isHidden())
        self._sync_pane_actions()

    def _sync_pane_actions(self) -> None:
        self.actions_by_id["view.inspector"].setChecked(not self._inspector_dock.isHidden())
        self.actions_by_id["view.jobs"].setChecked(not self._jobs_dock.isHidden())

    def _say(self, text: str) -> None:
        self.statusBar().showMessage(text, 8000)

    # Qt's own events.

    def dragEnterEvent(self, event: QDragEnterEvent) -> None:
        """Takes files."""
        if any(url.isLocalFile() for url in event.mimeData().urls()):
            event.acceptProposedAction()
            self._mark_drop(True)

    def dragLeaveEvent(self, _event: QDragLeaveEvent) -> None:
        """Takes the mark off again."""
        self._mark_drop(False)

    def dropEvent(self, event: QDropEvent) -> None:
        """Opens the first file that was dropped, once the drop is over."""
        self._mark_drop(False)
        for url in event.mimeData().urls():
            if url.isLocalFile():
                event.acceptProposedAction()
                dropped = partial(self.open_path, Path(url.toLocalFile()))
                QTimer.singleShot(0, self, dropped)
                return

    def closeEvent(self, event: QCloseEvent) -> None:
        """Remembers the layout; running jobs are cancelled and reaped."""
        self._settings.geometry = self.saveGeometry()
        self._settings.panes = self.saveState()
        self.background.close()
        super().closeEvent(event)

    def _mark_drop(self, on: bool) -> None:
        for state in self.findChildren(EmptyState):
            restyle(state, active="true" if on else "false")


def _spring() -> QWidget:
    spring = QWidget()
    policy = spring.sizePolicy()
    policy.setHorizontalPolicy(policy.Policy.Expanding)
    spring.setSizePolicy(policy)
    return spring


def _application() -> QApplication:
    application = QApplication.instance()
    assert isinstance(application, QApplication)
    return application
