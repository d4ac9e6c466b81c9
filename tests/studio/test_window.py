from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from PySide6.QtCore import QMimeData, QPoint, QPointF, Qt, QTimer, QUrl
from PySide6.QtGui import QDragEnterEvent, QDropEvent
from PySide6.QtTest import QTest
from PySide6.QtWidgets import QApplication, QLineEdit, QMenu, QToolBar, QToolButton, QWidget
from pytestqt.qtbot import QtBot

import edgewright as ew
from edgewright_studio import theme
from edgewright_studio.actions import ACTIONS, build
from edgewright_studio.compress_page import Functions, default_recipe
from edgewright_studio.dialogs import ShortcutSheet, TextDialog
from edgewright_studio.document import digits_example
from edgewright_studio.page import Page
from edgewright_studio.settings import Settings
from edgewright_studio.window import MainWindow
from studio.conftest import FAKES, MakeWindow
from studio.test_document import make_artifact, write_onnx
from studio.waiting import gone, until

WAIT_MS = 60_000


def idle(qtbot: QtBot, window: MainWindow) -> None:
    qtbot.waitUntil(lambda: not window.background.jobs, timeout=WAIT_MS)


def state(page: Page) -> str:
    return page.state


def replaced(**functions: str) -> Functions:
    values = {name: getattr(FAKES, name) for name in Functions.__dataclass_fields__}
    return Functions(**(values | functions))


def recipe_field(window: MainWindow, name: str) -> QLineEdit:
    found = [w for w in window.compress_page.findChildren(QLineEdit) if w.accessibleName() == name]
    assert len(found) == 1
    return found[0]


# Opening.


def test_pages_begin_empty_and_say_what_to_do(window: MainWindow) -> None:
    assert [page.state for page in window.pages.values()] == ["empty"] * 3


def test_opening_a_model_shows_it(window: MainWindow, qtbot: QtBot, tmp_path: Path) -> None:
    window.open_path(write_onnx(tmp_path / "net.onnx"))
    assert state(window.model_page) == "busy"
    idle(qtbot, window)
    assert state(window.model_page) == "content"
    assert window.document is not None
    assert window.document.name == "net"
    assert "net" in window.windowTitle()
    assert state(window.compress_page) == "content"


def test_a_damaged_file_shows_what_why_and_next_and_copies_them(
    window: MainWindow, qtbot: QtBot, tmp_path: Path, clipboard: Callable[[], str]
) -> None:
    (tmp_path / "net.onnx").write_bytes(b"nonsense")
    window.open_path(tmp_path / "net.onnx")
    idle(qtbot, window)
    assert state(window.model_page) == "error"
    shown = [
        b for b in window.model_page.findChildren(QWidget) if b.isVisible() and b.property("tone") == "bad"
    ]
    copy = next(b for b in shown[0].findChildren(QWidget) if b.property("text") == "Copy details")
    QTest.mouseClick(copy, Qt.MouseButton.LeftButton)
    assert "net.onnx is not a readable ONNX model" in clipboard()
    assert "Next step:" in clipboard()


def test_a_failed_open_keeps_the_model_that_was_there(
    window: MainWindow, qtbot: QtBot, tmp_path: Path
) -> None:
    window.open_path(write_onnx(tmp_path / "net.onnx"))
    idle(qtbot, window)
    window.open_path(tmp_path / "absent.onnx")
    assert state(window.model_page) == "content"
    assert window.model_page.banner.isVisible()
    assert window.document is not None
    assert window.document.name == "net"


def test_an_artifact_opens_and_is_not_compressed_again(
    window: MainWindow, qtbot: QtBot, tmp_path: Path
) -> None:
    window.open_path(make_artifact(tmp_path / "tiny.ew"))
    idle(qtbot, window)
    assert state(window.model_page) == "content"
    assert state(window.compress_page) == "empty"
    assert not window.actions_by_id["job.start"].isEnabled()


def test_an_artifact_does_not_take_the_place_of_the_model_to_compress(
    window: MainWindow, qtbot: QtBot, tmp_path: Path
) -> None:
    window.open_path(write_onnx(tmp_path / "net.onnx"))
    idle(qtbot, window)
    window.open_path(make_artifact(tmp_path / "tiny.ew"))
    idle(qtbot, window)
    assert window.document is not None
    assert window.document.kind == "artifact"
    assert window.compress_page.document is not None
    assert window.compress_page.document.kind == "onnx"


def test_a_model_opened_during_a_job_is_next(window: MainWindow, qtbot: QtBot, tmp_path: Path) -> None:
    window.open_example()
    job = window.compress_page.job
    assert job is not None
    window.open_path(write_onnx(tmp_path / "net.onnx"))
    idle(qtbot, window)
    assert window.compress_page.document is not None
    assert window.compress_page.document.kind == "onnx"


def test_a_dropped_file_is_opened(window: MainWindow, qtbot: QtBot, tmp_path: Path) -> None:
    data = QMimeData()
    data.setUrls([QUrl.fromLocalFile(str(write_onnx(tmp_path / "net.onnx")))])
    held = (Qt.DropAction.CopyAction, data, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier)
    enter = QDragEnterEvent(QPoint(5, 5), *held)
    QApplication.sendEvent(window, enter)
    assert enter.isAccepted()
    QApplication.sendEvent(window, QDropEvent(QPointF(5, 5), *held))
    qtbot.waitUntil(lambda: window.document is not None, timeout=WAIT_MS)
    idle(qtbot, window)


def test_text_is_not_dropped(window: MainWindow) -> None:
    data = QMimeData()
    data.setText("hello")
    enter = QDragEnterEvent(
        QPoint(5, 5),
        Qt.DropAction.CopyAction,
        data,
        Qt.MouseButton.LeftButton,
        Qt.KeyboardModifier.NoModifier,
    )
    QApplication.sendEvent(window, enter)
    assert not enter.isAccepted()


# The job.


def test_the_example_runs_to_the_result_table(
    window: MainWindow, qtbot: QtBot, tmp_path: Path, clipboard: Callable[[], str]
) -> None:
    window.actions_by_id["file.example"].trigger()
    assert window.compress_page.running
    assert state(window.result_page) == "busy"
    idle(qtbot, window)
    assert state(window.result_page) == "content"
    assert window.result_page.isVisible()
    assert window.result is not None
    assert [v.name for v in window.result.variants][-1] == "INT8, native engine"
    header = window.result_page.table.horizontalHeader()
    window.result_page.table.sortByColumn(3, Qt.SortOrder.AscendingOrder)
    assert header.sortIndicatorSection() == 3
    window.actions_by_id["result.copy"].trigger()
    names = [line.split("\t")[0] for line in clipboard().splitlines()]
    assert names[:2] == ["Variant", "INT8, native engine"]


def test_a_cancelled_job_is_reaped_and_the_form_is_free_again(
    make_window: MakeWindow, qtbot: QtBot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    window, pids, scratch = hanging_window(make_window, qtbot, tmp_path)
    assert not window.actions_by_id["job.start"].isEnabled()
    window.actions_by_id["job.cancel"].trigger()
    idle(qtbot, window)
    until(lambda: all(gone(pid) for pid in pids))
    assert not scratch.exists()
    assert window.compress_page.run_card.state_label.text() == "Cancelled"
    assert state(window.result_page) == "empty"
    assert window.actions_by_id["job.start"].isEnabled()


def test_closing_the_window_ends_its_jobs(make_window: MakeWindow, qtbot: QtBot, tmp_path: Path) -> None:
    window, pids, scratch = hanging_window(make_window, qtbot, tmp_path)
    window.close()
    assert window.background.jobs == ()
    until(lambda: all(gone(pid) for pid in pids))
    assert not scratch.exists()


def hanging_window(
    make_window: MakeWindow, qtbot: QtBot, tmp_path: Path
) -> tuple[MainWindow, list[int], Path]:
    window = make_window(replaced(compress_digits="studio.fake_tasks:hang_beside"))
    window.open_example()
    marker = tmp_path / "examples" / "marker"
    qtbot.waitUntil(marker.exists, timeout=WAIT_MS)
    *pids, scratch = marker.read_text().split(" ", 2)
    return window, [int(p) for p in pids], Path(scratch)


def test_a_failed_job_shows_the_problem_and_keeps_the_form(make_window: MakeWindow, qtbot: QtBot) -> None:
    window = make_window(replaced(compress_digits="studio.fake_tasks:refuse"))
    window.open_example()
    idle(qtbot, window)
    assert state(window.compress_page) == "content"
    assert window.compress_page.banner.isVisibleTo(window.compress_page)
    assert state(window.result_page) == "error"
    assert window.actions_by_id["job.start"].isEnabled()


def test_a_chatty_job_does_not_hold_up_the_window(make_window: MakeWindow, qtbot: QtBot) -> None:
    """The longest time between two ticks of a timer while 50,000 events come in."""
    window = make_window(replaced(compress_digits="studio.fake_tasks:chatter_digits"))
    ticks: list[float] = []
    timer = QTimer()
    timer.setTimerType(Qt.TimerType.PreciseTimer)
    timer.setInterval(1)
    timer.timeout.connect(lambda: ticks.append(time.perf_counter()))
    window.open_example()
    timer.start()
    job = window.compress_page.job
    assert job is not None
    qtbot.waitUntil(lambda: job.progress is not None, timeout=WAIT_MS)
    window.actions_by_id["view.model"].trigger()
    assert window.model_page.isVisible()
    qtbot.waitUntil(lambda: job.progress is not None and job.progress.done == 50_000, timeout=WAIT_MS)
    timer.stop()
    job.cancel()
    idle(qtbot, window)
    stalls = [later - earlier for earlier, later in pairwise(ticks)]
    # Each drain is bounded, so the window got its turn all along the way, not once at the end.
    assert len(stalls) > 10
    sys.stdout.write(f"longest stall with 50,000 events: {1000 * max(stalls):.0f} ms\n")


# Actions.


def test_every_action_is_in_a_menu_and_has_a_key_or_a_mnemonic(window: MainWindow) -> None:
    menus = [m for m in window.menuBar().findChildren(QMenu) if m.title()]
    reachable = {a.objectName() for menu in menus for a in menu.actions() if not a.isSeparator()}
    assert reachable == {spec.id for spec in ACTIONS}
    assert all("&" in menu.title() for menu in menus)
    for spec in ACTIONS:
        assert spec.shortcut or "&" in spec.text
    for menu in {spec.menu for spec in ACTIONS}:
        letters = [s.text.split("&")[1][0].lower() for s in ACTIONS if s.menu == menu]
        assert len(letters) == len(set(letters)), menu
    keys = [s.shortcut for s in ACTIONS if s.shortcut]
    assert len(keys) == len(set(keys))


def test_actions_and_handlers_are_the_same_set(window: MainWindow) -> None:
    with pytest.raises(ValueError, match=r"file\.open"):
        build(window, {})


def test_every_icon_of_the_table_is_there(window: MainWindow) -> None:
    for action in window.actions_by_id.values():
        assert not action.icon().isNull()


def test_the_toolbar_shows_exactly_the_actions_marked_for_it(window: MainWindow) -> None:
    bar = window.findChild(QToolBar)
    assert bar is not None
    shown = [a.objectName() for a in bar.actions() if a.objectName()]
    assert shown == [s.id for s in ACTIONS if s.toolbar]


def test_shortcuts_work_wherever_the_focus_is(window: MainWindow, qtbot: QtBot) -> None:
    window.activateWindow()
    qtbot.waitUntil(window.isActiveWindow)
    for key, page in ((Qt.Key.Key_2, "compress"), (Qt.Key.Key_3, "compare"), (Qt.Key.Key_1, "model")):
        QTest.keyClick(QApplication.focusWidget() or window, key, Qt.KeyboardModifier.ControlModifier)
        assert window.pages[page].isVisible()
    QTest.keyClick(QApplication.focusWidget() or window, Qt.Key.Key_F1)
    sheet = window.findChild(ShortcutSheet)
    assert sheet is not None
    assert sheet.isVisible()
    QTest.keyClick(sheet, Qt.Key.Key_Escape)
    qtbot.waitUntil(lambda: window.findChild(ShortcutSheet) is None)


def test_f6_goes_round_the_panes_and_tab_reaches_the_toolbar(window: MainWindow, qtbot: QtBot) -> None:
    window.activateWindow()
    qtbot.waitUntil(window.isActiveWindow)
    seen = []
    for _ in range(3):
        window.actions_by_id["view.next_pane"].trigger()
        focus = QApplication.focusWidget()
        assert focus is not None
        seen.append(focus)
    assert len(set(seen)) == 3
    bar = window.findChild(QToolBar)
    assert bar is not None
    tools = [t for t in bar.findChildren(QToolButton) if t.defaultAction() is not None]
    assert tools
    assert all(t.focusPolicy() & Qt.FocusPolicy.TabFocus for t in tools)


def test_panes_hide_and_come_back_and_a_restart_remembers(
    make_window: MakeWindow, settings: Settings
) -> None:
    first = make_window()
    first.actions_by_id["view.inspector"].trigger()
    assert not first.inspector.isVisible()
    assert not first.actions_by_id["view.inspector"].isChecked()
    first.resize(1100, 700)
    first.close()
    second = make_window()
    assert not second.inspector.isVisible()
    # The offscreen display is narrower than the window.
    assert second.height() == 700
    second.actions_by_id["view.inspector"].trigger()
    assert second.inspector.isVisible()


def test_light_and_dark_switch_and_are_remembered(window: MainWindow, settings: Settings) -> None:
    before = window.palette().window().color().name()
    window.actions_by_id["view.theme"].trigger()
    assert QApplication.palette().window().color().name() == theme.DARK.window != before
    assert settings.theme == "dark"
    window.actions_by_id["view.theme"].trigger()
    assert QApplication.palette().window().color().name() == theme.LIGHT.window


def test_about_gives_versions_to_copy(window: MainWindow, qtbot: QtBot, clipboard: Callable[[], str]) -> None:
    window.actions_by_id["help.about"].trigger()
    dialog = window.findChild(TextDialog)
    assert dialog is not None
    copy = next(b for b in dialog.findChildren(QWidget) if b.property("text") == "Copy details")
    QTest.mouseClick(copy, Qt.MouseButton.LeftButton)
    assert "PySide6_Essentials 6." in clipboard()
    dialog.close()


def test_targets_are_learned_in_the_background(window: MainWindow, qtbot: QtBot) -> None:
    window.learn_targets()
    idle(qtbot, window)
    box = window.compress_page.job_form.target
    assert [box.itemText(i) for i in range(box.count())] == [
        "This machine (x86-avx2)",
        "rpi5",
        "x86-64",
        "x86-avx2",
    ]
    assert box.currentData() == ""


def test_the_form_is_made_bit_by_bit_and_finished_when_it_is_needed(window: MainWindow, qtbot: QtBot) -> None:
    form = window.compress_page.recipe_form
    form.prepare()
    made = len(form.findChildren(QLineEdit))
    form.set_recipe(ew.Recipe(name="x"))
    complete = len(form.findChildren(QLineEdit))
    assert complete > made
    form.prepare()
    QApplication.processEvents()
    assert len(form.findChildren(QLineEdit)) == complete


# The forms.


def test_the_form_starts_from_the_recipe_and_gives_it_back(
    window: MainWindow, qtbot: QtBot, tmp_path: Path
) -> None:
    window.open_example()
    idle(qtbot, window)
    form = window.compress_page.recipe_form
    recipe = ew.Recipe(
        name="mine",
        seed=5,
        distill=ew.Distill(learning_rate=0.00123456789, layers=(ew.LayerLoss(student="a", teacher="b"),)),
        quantize=ew.Quantize(calibration="mse"),
    )
    form.set_recipe(recipe)
    assert form.recipe() == recipe
    form.save(tmp_path / "recipe.toml")
    assert ew.Recipe.from_toml(tmp_path / "recipe.toml") == recipe
    form.set_recipe(ew.Recipe(name="other"))
    form.load(tmp_path / "recipe.toml")
    assert form.recipe() == recipe


def test_the_example_begins_with_the_recipe_of_the_digits() -> None:
    assert default_recipe(digits_example(), "any") == ew.digits.recipe()


def test_a_wrong_value_shows_the_sdks_message_and_holds_the_job(window: MainWindow, qtbot: QtBot) -> None:
    window.open_example()
    idle(qtbot, window)
    window.actions_by_id["view.compress"].trigger()
    ratio = recipe_field(window, "Prune channels: Ratio")
    ratio.setText("1.5")
    assert "ratio" in window.compress_page.problem()
    assert "out of range" in window.compress_page.problem()
    assert not window.actions_by_id["job.start"].isEnabled()
    ratio.setText("half")
    assert "is not a number" in window.compress_page.problem()
    ratio.setText("0.5")
    assert window.compress_page.problem() == ""
    assert window.actions_by_id["job.start"].isEnabled()
    seed = recipe_field(window, "Seed")
    seed.setText("-1")
    assert "seed" in window.compress_page.problem()


def test_a_wrong_recipe_file_names_the_key_and_leaves_the_form(
    window: MainWindow, qtbot: QtBot, tmp_path: Path
) -> None:
    window.open_example()
    idle(qtbot, window)
    before = window.compress_page.recipe_form.recipe()
    (tmp_path / "r.toml").write_text('name = "x"\n[prune]\nratoi = 0.5\n')
    window.actions_by_id["view.compress"].trigger()
    window.load_recipe(tmp_path / "r.toml")
    texts = [w.property("text") for w in window.compress_page.banner.findChildren(QWidget)]
    assert any("did you mean 'ratio'" in str(t) for t in texts)
    assert window.compress_page.recipe_form.recipe() == before


def test_a_field_explains_itself_in_the_inspector(window: MainWindow, qtbot: QtBot) -> None:
    window.open_example()
    idle(qtbot, window)
    window.actions_by_id["view.compress"].trigger()
    window.activateWindow()
    qtbot.waitUntil(window.isActiveWindow)
    recipe_field(window, "Distill from a teacher: Temperature").setFocus()
    shown = [str(w.property("text")) for w in window.inspector.findChildren(QWidget)]
    assert any("Softens both outputs" in text for text in shown)


def test_an_exported_model_needs_data_and_only_quantizes(
    window: MainWindow, qtbot: QtBot, tmp_path: Path
) -> None:
    window.open_path(write_onnx(tmp_path / "net.onnx"))
    idle(qtbot, window)
    page = window.compress_page
    assert "data" in page.problem()
    page.job_form.data.text.setText(str(tmp_path / "absent.npz"))
    assert "does not exist" in page.problem()
    (tmp_path / "data.npz").write_bytes(b"")
    page.job_form.data.text.setText(str(tmp_path / "data.npz"))
    assert page.problem() == ""
    task = page.task()
    assert task.function == FAKES.export
    assert task.arguments["out"] == str(tmp_path / "net.ew")
    page.job_form.out.text.setText(str(tmp_path / "net.bin"))
    assert ".ew" in page.problem()


def test_a_python_model_offers_its_entry_points_and_asks_for_a_teacher(
    window: MainWindow, qtbot: QtBot, tmp_path: Path
) -> None:
    (tmp_path / "net.py").write_text("def small(): ...\ndef large(): ...\n")
    (tmp_path / "data.npz").write_bytes(b"")
    window.open_path(tmp_path / "net.py")
    idle(qtbot, window)
    page = window.compress_page
    page.job_form.data.text.setText(str(tmp_path / "data.npz"))
    assert page.problem() == ""
    page.recipe_form.set_recipe(ew.Recipe(name="x", distill=ew.Distill()))
    assert "teacher" in page.problem()
    page.job_form.teacher.setCurrentText("large")
    task = page.task()
    assert (task.arguments["entry_point"], task.arguments["teacher"]) == ("small", "large")


def test_the_result_is_exported_as_json(
    window: MainWindow, qtbot: QtBot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PySide6.QtWidgets import QFileDialog

    window.open_example()
    idle(qtbot, window)
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: (str(tmp_path / "r"), ""))
    window.actions_by_id["result.export"].trigger()
    assert json.loads((tmp_path / "r.json").read_text())["cases"] == 1000
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: (str(tmp_path / "no" / "r.json"), ""))
    window.actions_by_id["result.export"].trigger()
    assert window.result_page.banner.isVisible()
