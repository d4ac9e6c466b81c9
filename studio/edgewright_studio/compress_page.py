"""The Compress page: the recipe, what else the job needs, and how the job is doing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from PySide6.QtCore import Qt, Signal
from PySide6.QtGui import QAction
from PySide6.QtWidgets import QFrame, QHBoxLayout, QScrollArea, QVBoxLayout, QWidget

import edgewright as ew
from edgewright_studio.document import KIND_TITLES, Document
from edgewright_studio.errors import TaskError
from edgewright_studio.job_form import NO_TEACHER, JobForm
from edgewright_studio.jobs import Cancelled, End, Failed, Finished, Job, Progressed, Task
from edgewright_studio.page import Page, button, label
from edgewright_studio.recipe_form import RecipeForm
from edgewright_studio.run_card import RunCard

COMPRESSIBLE = frozenset({"example", "python", "onnx", "pt2"})
# What an exported graph can still be given: its training is over.
EXPORT_PARTS = frozenset({"quantize"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Functions:
    """The functions that jobs run, as "module:name"."""

    open_document: str = "edgewright_studio.tasks:open_document"
    list_targets: str = "edgewright_studio.tasks:list_targets"
    compress_digits: str = "edgewright_studio.tasks:compress_digits"
    compress: str = "edgewright_studio.tasks:compress"
    export: str = "edgewright_studio.tasks:export"


class CompressPage(Page):
    """Edits what the job will do, makes its `Task`, and shows its events.

    Attributes:
        ready_changed: Whether a job can be started may have changed.
    """

    ready_changed = Signal()

    def __init__(self, actions: Mapping[str, QAction], functions: Functions) -> None:
        super().__init__("Compress")
        self.document: Document | None = None
        self.job: Job | None = None
        self._functions = functions
        self._actions = actions
        self.recipe_form = RecipeForm()
        self.job_form = JobForm()
        self.run_card = RunCard()
        self._hint = label(role="bad", wrap=True)
        for name in ("recipe.load", "recipe.save"):
            self.header_buttons.addWidget(button(actions[name]))
        start = button(actions["job.start"], primary=True)
        cancel = button(actions["job.cancel"])
        run = QHBoxLayout()
        run.setSpacing(8)
        run.addWidget(self._hint, 1)
        run.addWidget(cancel)
        run.addWidget(start)
        right = QVBoxLayout()
        right.setSpacing(14)
        right.addWidget(self.job_form)
        right.addLayout(run)
        right.addWidget(self.run_card, 1)
        self._forms = QScrollArea()
        self._forms.setWidgetResizable(True)
        self._forms.setFrameShape(QFrame.Shape.NoFrame)
        self._forms.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self._forms.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        holder = QWidget()
        left = QVBoxLayout(holder)
        left.setContentsMargins(0, 0, 8, 0)
        left.addWidget(self.recipe_form)
        left.addStretch(1)
        self._forms.setWidget(holder)
        content = QWidget()
        row = QHBoxLayout(content)
        row.setContentsMargins(0, 0, 0, 0)
        row.setSpacing(14)
        row.addWidget(self._forms, 5)
        row.addLayout(right, 6)
        self.set_content(content)
        self.recipe_form.changed.connect(self._check)
        self.job_form.changed.connect(self._check)
        self.recipe_form.explained.connect(lambda t, h: self.selected.emit(t, [("What it does", h)]))

    def has_content(self) -> bool:
        """True once a model is open that can be compressed."""
        return self.document is not None and self.document.kind in COMPRESSIBLE

    @property
    def running(self) -> bool:
        """Whether this page's job still runs."""
        return self.job is not None and self.job.end is None

    def show_document(self, document: Document, folder: Path) -> None:
        """Prepares a job for a model; its artifact would go into `folder`."""
        self.document = document
        self.title.setText("Compress")
        self.subtitle.setText(document.name)
        self.chip.setText(KIND_TITLES[document.kind])
        self.chip.show()
        if document.kind not in COMPRESSIBLE:
            self.set_empty(
                "artifact",
                "This is compressed already",
                "An artifact is the end of the trip. To compress anew, open the model that it was made from.",
                [self._actions["file.open"], self._actions["file.example"]],
            )
            self.show_empty()
            return
        slug = re.sub(r"[^A-Za-z0-9._-]+", "-", document.name).strip("-._").lower() or "model"
        self.recipe_form.set_recipe(default_recipe(document, slug))
        exported = document.kind in {"onnx", "pt2"}
        self.recipe_form.only(EXPORT_PARTS if exported else None)
        self.job_form.folder = folder
        self.job_form.show_document(document, folder / f"{slug}.ew")
        self.show_content()
        self._check()

    def problem(self) -> str:
        """Why no job can be started, in one line; empty when one can."""
        if not self.has_content():
            return "Open a model first."
        if problem := self.recipe_form.problem():
            return problem
        return self.job_form.problem(distills=self.recipe_form.recipe().distill is not None)

    def task(self) -> Task:
        """The job that the forms describe.

        Raises:
            TaskError: Something is missing or wrong.
        """
        document = self.document
        problem = self.problem()
        if document is None or problem:
            raise TaskError("Cannot start the job", why=problem, next_step="Mend it, then press Start.")
        form = self.job_form
        out = form.out.text.text().strip()
        arguments = {
            "recipe": self.recipe_form.recipe().to_toml(),
            "target": form.target.currentData(),
            "out": out,
        }
        if document.kind == "example":
            function = self._functions.compress_digits
        else:
            arguments |= {"model": document.path, "data": form.data.text.text().strip()}
            function = self._functions.export
        if document.kind == "python":
            teacher = form.teacher.currentText()
            arguments |= {
                "entry_point": form.entry_point.currentText(),
                "teacher": "" if teacher == NO_TEACHER else teacher,
            }
            function = self._functions.compress
        return Task(
            title=f"Compress {document.name}",
            function=function,
            arguments=arguments,
            scratch_in=str(Path(out).parent),
        )

    def begin(self, job: Job) -> None:
        """Shows a job that was just started."""
        self.job = job
        self.banner.hide()
        self.run_card.begin()
        self._enable(False)

    def show_progress(self, job: Job, event: Progressed) -> None:
        """Shows how far the job is."""
        self.run_card.show_progress(job, event)

    def show_end(self, job: Job, event: End) -> None:
        """Shows how the job ended."""
        self.run_card.show_end(job, event)
        self._enable(True)
        match event:
            case Failed():
                self.show_error(event.problem)
            case Finished():
                self.banner.show_success(
                    "Compressed and verified",
                    "The variants are on the Compare page.",
                    self._actions["view.compare"],
                )
            case Cancelled():
                self.banner.hide()

    def _enable(self, on: bool) -> None:
        self.recipe_form.setEnabled(on)
        self.job_form.setEnabled(on)
        self._check()

    def _check(self) -> None:
        self._hint.setText("" if self.running else self.problem())
        self.ready_changed.emit()


def default_recipe(document: Document, name: str) -> ew.Recipe:
    """Where the form begins: all steps for the example, no teacher for a model of one's own."""
    if document.kind == "example":
        # `ew.digits.recipe()`, which would import torch into the window.
        return ew.Recipe(
            name="digits",
            distill=ew.Distill(epochs=12, learning_rate=4e-3),
            prune=ew.Prune(ratio=0.3, round_to=4),
            finetune=ew.Finetune(epochs=8, learning_rate=1e-3),
        )
    if document.kind == "python":
        return ew.Recipe(name=name, prune=ew.Prune(), finetune=ew.Finetune())
    return ew.Recipe(name=name)
