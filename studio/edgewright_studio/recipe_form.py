"""The recipe as a form, with the SDK's own messages under the fields that are wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PySide6.QtCore import QEvent, QObject, QTimer, Signal, SignalInstance
from PySide6.QtWidgets import QCheckBox, QFormLayout, QFrame, QLabel, QLineEdit, QVBoxLayout, QWidget

import edgewright as ew
from edgewright_studio.page import Choice, caption, card, label, restyle
from edgewright_studio.recipe_fields import FormField, Part, Values, make_recipe, parts, problem_in, values_of
from edgewright_studio.results import write_text


class RecipeForm(QWidget):
    """Edits a recipe.

    Attributes:
        changed: Some value changed; ask `problem` and `recipe`.
        explained: (title, help) of the field that has the focus.
    """

    changed = Signal()
    explained = Signal(str, str)

    def __init__(self) -> None:
        super().__init__()
        self._name = "recipe"
        self._sections: list[_Section] = []
        self._is_made = False
        self._seed = QLineEdit()
        self._seed_error = label(role="bad", wrap=True)
        self._column = QVBoxLayout(self)
        self._column.setContentsMargins(0, 0, 0, 0)
        self._column.setSpacing(12)

    def set_recipe(self, recipe: ew.Recipe) -> None:
        """Shows a recipe."""
        while self._make_next():
            pass
        self._name = recipe.name
        self._seed.setText(str(recipe.seed))
        values = values_of(recipe)
        for section in self._sections:
            section.set_values(values[section.part.name])
        self.changed.emit()

    def only(self, names: frozenset[str] | None) -> None:
        """Shows only some parts; None shows all."""
        for section in self._sections:
            section.setVisible(names is None or section.part.name in names)

    def problem(self) -> str:
        """What is wrong, in one line; empty when nothing is."""
        return next((text for s in self._sections if (text := s.problem)), self._seed_problem())

    def recipe(self) -> ew.Recipe:
        """The recipe as the form has it.

        Raises:
            ValueError: Something is wrong; `problem` says what.
        """
        values = {s.part.name: s.values() for s in self._sections}
        return make_recipe(self._name, _number_in(self._seed.text(), int), values)

    def load(self, path: Path) -> None:
        """Fills the form from a recipe file.

        Raises:
            RecipeError: The file is not a recipe; the message names the key.
        """
        self.set_recipe(ew.Recipe.from_toml(path))

    def save(self, path: Path) -> None:
        """Writes the form as a recipe file, whole or not at all.

        Raises:
            ValueError: The form holds a wrong value.
            OSError: The file cannot be written.
        """
        write_text(path, self.recipe().to_toml())

    def prepare(self) -> None:
        """Makes the fields, one part per turn of the event loop, for they cost as much as the window."""
        if self._make_next():
            QTimer.singleShot(0, self, self.prepare)

    def _make_next(self) -> bool:
        """Makes the fields of the next part; False when there is none left."""
        if self._is_made:
            return False
        known = parts()
        if len(self._sections) < len(known):
            section = _Section(known[len(self._sections)])
            section.changed.connect(self.changed)
            section.explained.connect(self.explained)
            self._sections.append(section)
            self._column.addWidget(section)
            return True
        frame = card()
        form = _form(frame)
        self._seed.setAccessibleName("Seed")
        self._seed.textChanged.connect(self._seed_changed)
        self._seed_error.hide()
        form.addRow(caption("Seed"), self._seed)
        form.addRow(self._seed_error)
        self._column.addWidget(frame)
        self._is_made = True
        return False

    def _seed_changed(self) -> None:
        problem = self._seed_problem()
        self._seed_error.setText(problem)
        self._seed_error.setVisible(bool(problem))
        restyle(self._seed, wrong="true" if problem else "false")
        self.changed.emit()

    def _seed_problem(self) -> str:
        try:
            make_recipe(self._name, _number_in(self._seed.text(), int), {})
        except ValueError as error:
            return str(error)
        return ""


class _Section(QFrame):
    """One part of the recipe."""

    changed = Signal()
    explained = Signal(str, str)

    def __init__(self, part: Part) -> None:
        super().__init__()
        self.setProperty("role", "card")
        self.part = part
        self.problem = ""
        self._unseen: Values = {}
        self._inputs: dict[str, QWidget] = {}
        self._errors: dict[str, QLabel] = {}
        self._helps: dict[QObject, tuple[str, str]] = {}
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(0)
        self._switch: QCheckBox | None = None
        if part.optional:
            self._switch = QCheckBox(part.title)
            self._switch.setProperty("role", "part")
            self._switch.setChecked(True)
            self._switch.toggled.connect(self._switched)
            head: QWidget = self._switch
        else:
            head = label(part.title, "heading")
        head.setContentsMargins(16, 12, 16, 0)
        if self._switch is not None:
            holder = QVBoxLayout()
            holder.setContentsMargins(16, 12, 16, 10)
            holder.addWidget(self._switch)
            column.addLayout(holder)
        else:
            column.addWidget(head)
        self._body = QWidget()
        form = _form(self._body)
        for each in part.fields:
            self._add(form, each)
        column.addWidget(self._body)

    def set_values(self, values: Values | None) -> None:
        if self._switch is not None:
            self._switch.setChecked(values is not None)
        if values is None:
            return
        shown = {f.name for f in self.part.fields}
        self._unseen = {k: v for k, v in values.items() if k not in shown}
        for each in self.part.fields:
            _set_value(self._inputs[each.name], each, values[each.name])
        self._check()

    def values(self) -> Values | None:
        if self._switch is not None and not self._switch.isChecked():
            return None
        return self._unseen | {f.name: _value(self._inputs[f.name], f) for f in self.part.fields}

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        if event.type() == QEvent.Type.FocusIn and watched in self._helps:
            self.explained.emit(*self._helps[watched])
        return False

    def _add(self, form: QFormLayout, each: FormField) -> None:
        widget = _input(each)
        widget.setAccessibleName(f"{self.part.title}: {each.title}")
        widget.setToolTip(each.help)
        widget.installEventFilter(self)
        self._helps[widget] = (each.title, each.help)
        _changes(widget).connect(self._changed)
        error = label(role="bad", wrap=True)
        error.hide()
        holder = QWidget()
        inner = QVBoxLayout(holder)
        inner.setContentsMargins(0, 0, 0, 0)
        inner.setSpacing(2)
        inner.addWidget(widget)
        inner.addWidget(error)
        title = caption(each.title)
        title.setToolTip(each.help)
        form.addRow(title, holder)
        self._inputs[each.name] = widget
        self._errors[each.name] = error

    def _switched(self, on: bool) -> None:
        self._body.setVisible(on)
        self._changed()

    def _changed(self) -> None:
        self._check()
        self.changed.emit()

    def _check(self) -> None:
        values = self.values()
        found = None if values is None else problem_in(self.part, values)
        self.problem = f"{self.part.title}, {found[0]}: {found[1]}" if found else ""
        for name, error in self._errors.items():
            wrong = found is not None and found[0] == name
            if wrong and found is not None:
                error.setText(found[1])
            error.setVisible(wrong)
            if isinstance(widget := self._inputs[name], QLineEdit):
                restyle(widget, wrong="true" if wrong else "false")


def _form(owner: QWidget) -> QFormLayout:
    form = QFormLayout(owner)
    form.setContentsMargins(16, 10, 16, 14)
    form.setHorizontalSpacing(16)
    form.setVerticalSpacing(8)
    form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
    return form


def _input(each: FormField) -> QWidget:
    if each.kind == "choice":
        box = Choice()
        box.addItems([str(c) for c in each.choices])
        box.setCurrentIndex(each.choices.index(each.default))
        return box
    return QLineEdit(_text(each.default))


def _changes(widget: QWidget) -> SignalInstance:
    if isinstance(widget, Choice):
        return widget.currentIndexChanged
    assert isinstance(widget, QLineEdit)
    return widget.textChanged


def _set_value(widget: QWidget, each: FormField, value: Any) -> None:
    if isinstance(widget, Choice):
        widget.setCurrentIndex(each.choices.index(value))
    elif isinstance(widget, QLineEdit):
        widget.setText(_text(value))


def _value(widget: QWidget, each: FormField) -> Any:
    if isinstance(widget, Choice):
        return each.choices[widget.currentIndex()]
    assert isinstance(widget, QLineEdit)
    return _number_in(widget.text(), {"int": int, "float": float}.get(each.kind, str))


def _number_in(text: str, kind: type[int] | type[float] | type[str]) -> Any:
    """The number; what is none stays text, and the recipe says what is wrong with it."""
    try:
        return kind(text.strip())
    except ValueError:
        return text


def _text(value: Any) -> str:
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return "" if value is None else str(value)
