from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from PySide6.QtCore import QModelIndex, Qt
from pytestqt.modeltest import ModelTester

from edgewright_studio import units
from edgewright_studio.results import Result, Variant, as_tsv, write_json, write_text
from edgewright_studio.table import Rows, number, words
from studio.fake_tasks import sample_result


def test_a_result_survives_the_way_through_json() -> None:
    result = sample_result("/x.ew")
    exact = Result.from_json(
        result.to_json() | {"variants": [{**result.to_json()["variants"][0], "sqnr_db": "inf"}]}
    )
    assert math.isinf(exact.variants[0].sqnr_db or 0)
    assert Result.from_json(json.loads(json.dumps(result.to_json()))) == result
    assert json.loads(json.dumps(exact.to_json(), allow_nan=False))["variants"][0]["sqnr_db"] == "inf"


def test_the_tiles_say_what_was_gained_and_do_not_hide_a_loss() -> None:
    result = sample_result("/x.ew")
    assert ("39.2\N{MULTIPLICATION SIGN}", "smaller") in result.highlights()
    assert ("\N{MINUS SIGN}0.56", "points of accuracy") in result.highlights()
    slow = Result.from_json(
        result.to_json()
        | {
            "variants": [
                {**v, "latency_ms": ms}
                for v, ms in zip(result.to_json()["variants"], (1.0, 1.0, 1.0, 2.0), strict=True)
            ],
            "passed": False,
        }
    )
    assert ("2.0\N{MULTIPLICATION SIGN}", "slower") in slow.highlights()
    assert slow.highlights()[-1][0] == "Failed"


def test_tsv_has_a_heading_and_empty_cells_for_what_was_not_measured() -> None:
    lines = as_tsv([Variant(name="Float", accuracy=0.5)]).splitlines()
    assert lines[0].split("\t")[:2] == ["Variant", "Accuracy, %"]
    assert lines[1].split("\t") == ["Float", "50", "", "", "", ""]


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json(sample_result("/x.ew"), path)
    before = path.read_bytes()
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud800")
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_rows_sort_and_unknown_figures_come_last_either_way(qtmodeltester: ModelTester) -> None:
    rows = Rows(("Name", "Size"), numbers=frozenset({1}))
    rows.set_rows(
        [(words(n), number(v, str(v))) for n, v in (("b", 2.0), ("c", None), ("a", 3.0), ("d", 1.0))]
    )
    qtmodeltester.check(rows)  # type: ignore[no-untyped-call]

    def shown() -> str:
        return "".join(str(rows.index(i, 0).data()) for i in range(rows.rowCount()))

    rows.sort(1, Qt.SortOrder.AscendingOrder)
    assert shown() == "dbac"
    rows.sort(1, Qt.SortOrder.DescendingOrder)
    assert shown() == "abdc"
    rows.sort(0)
    assert shown() == "abcd"
    rows.sort(-1)
    assert shown() == "bcad"


def test_a_selection_follows_its_row_when_the_order_changes(qtmodeltester: ModelTester) -> None:
    from PySide6.QtCore import QPersistentModelIndex

    rows = Rows(("Name",))
    rows.set_rows([(words("b"),), (words("a"),)])
    kept = QPersistentModelIndex(rows.index(0, 0, QModelIndex()))
    rows.sort(0)
    assert (kept.row(), kept.data()) == (1, "b")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 bytes"), (1023, "1,023 bytes"), (1024, "1.0 KiB"), (3 << 20, "3.0 MiB"), (5 << 30, "5.00 GiB")],
)
def test_sizes_are_read_in_the_largest_fitting_unit(value: int, text: str) -> None:
    assert units.size(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.4, "0 s"), (59.7, "1 min 0 s"), (80, "1 min 20 s"), (7500, "2 h 5 min")]
)
def test_durations_are_short(value: float, text: str) -> None:
    assert units.duration(value) == text
