"""The page of a report shows what is in it, and runs nothing."""

from __future__ import annotations

import base64
import zlib
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from edgewright.checks import at_least
from edgewright.exporting import export
from edgewright.page_parts import bar_chart
from edgewright.preview import preview
from edgewright.remedies import Attempt, Remedy
from edgewright.report_page import html_page
from edgewright.soundness.finding import Finding
from edgewright.verification import verify
from edgewright.verification_report import VerificationReport
from edgewright_device import Port
from sdk.graphs import corners_and_more, mlp, saved

X = corners_and_more(8)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> VerificationReport:
    model = saved(mlp(), tmp_path_factory.mktemp("page") / "mlp.onnx")
    artifact = export(model, target="x86-64", calibration=X, out=model.parent / "mlp.ew")
    return verify(artifact, reference=model, data=X, cases=400)


class Reader(HTMLParser):
    """Text, and that tags are closed in the order they were opened."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: object) -> None:  # noqa: ARG002
        self.tags.add(tag)
        if tag not in {"meta", "img", "br", "rect"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag != "rect":
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    assert not reader.open
    return reader


def test_a_page_is_whole_and_says_what_was_found(report: VerificationReport) -> None:
    page = read(html_page(report))
    assert "✓ passed" in page.text
    assert report.artifact in page.text
    for check in report.checks:
        assert check.what in page.text
    assert "onnxruntimewithin 2 steps" in page.text.replace("\n", "")
    assert "script" not in page.tags
    assert "link" not in page.tags


def test_what_failed_comes_first_with_its_remedy(report: VerificationReport) -> None:
    bad = at_least("sqnr", "signal <to> noise", 7.3, 20, "dB", remedy="export it with overflow_safe")
    page = html_page(replace(report, checks=(bad,), certificate=None))
    assert page.index("What is wrong") < page.index("<h2>Checks")
    assert "export it with overflow_safe" in page
    assert "signal &lt;to&gt; noise" in page
    assert "✗ failed" in page
    assert "refuses this report" in read(page).text


def test_names_cannot_bring_markup(report: VerificationReport) -> None:
    page = html_page(replace(report, name="<script>alert(1)</script>", reference='"><img src=x>'))
    assert "script" not in read(page).tags
    assert "<img src=x>" not in page


def test_a_report_without_details_is_a_page_too(report: VerificationReport) -> None:
    assert "Worst cases" not in html_page(replace(report, worst=(), errors=None, overflow=(), coverage=None))


def test_bars_of_infinite_and_negative_values_stay_inside() -> None:
    chart = bar_chart([("a", np.inf), ("b", -3.0), ("c", float("nan")), ("d", 40.0)], "dB")
    assert "no bit differs" in chart
    assert 'width="-' not in chart


PORT = Port(
    name="x", shape=(None, 3, 8, 8), dtype="float32", scale=0.1, zero_point=0, minimum=0.0, maximum=1.0
)


def test_a_picture_shows_the_values_over_the_range() -> None:
    image = np.zeros((3, 8, 8), np.float32)
    image[1] = 1.0
    shown = preview(image, PORT)
    png = base64.b64decode(shown.picture.removeprefix("data:image/png;base64,"))
    at = png.index(b"IDAT")
    size = int.from_bytes(png[at - 4 : at], "big")
    lines = zlib.decompress(png[at + 4 : at + 4 + size])
    assert lines[:7] == b"\0" + b"\0\xff\0" * 2
    assert shown.shape == (3, 8, 8)


def test_a_large_picture_is_made_smaller() -> None:
    shown = preview(np.zeros((3, 224, 224), np.float32), PORT)
    png = base64.b64decode(shown.picture.removeprefix("data:image/png;base64,"))
    assert int.from_bytes(png[16:20], "big") <= 96


@pytest.mark.parametrize(
    "value", [np.arange(300), np.linspace(0, 1, 300, dtype=np.float32), np.zeros((5, 8, 8), np.float32)]
)
def test_what_is_no_picture_is_its_first_numbers(value: np.ndarray) -> None:
    shown = preview(value, PORT)
    assert not shown.picture
    assert len(shown.numbers) == 128


def test_the_command_writes_the_page(tmp_path: Path, report: VerificationReport) -> None:
    from edgewright.verify_command import Outputs, run_verify

    model = saved(mlp(), tmp_path / "mlp.onnx")
    outputs = Outputs(report=tmp_path / "r.json", html=tmp_path / "deep" / "r.html", json_to=None)
    assert run_verify(model, outputs, reference=model, cases=200, data=X) == 0
    assert "✓ passed" in (tmp_path / "deep" / "r.html").read_text("utf-8")
    assert VerificationReport.from_json((tmp_path / "r.json").read_text("utf-8")).passed


def test_the_inside_is_shown_layer_by_layer(report: VerificationReport) -> None:
    page = read(html_page(report))
    assert "Layer by layer" in page.text
    for layer in report.layers:
        assert layer.layer in page.text
    assert "Found inside" not in page.text


def test_what_was_found_and_tried_is_told(report: VerificationReport) -> None:
    found = Finding(check="weights", place="fc<1>", found="0.3 of its steps", cause="scales along axis 1")
    bad = at_least("sqnr", "noise", 3.0, 20.0, "dB")
    good = at_least("sqnr", "noise", 30.0, 20.0, "dB")
    before = Attempt(change="as it is", recipe="", size_bytes=10, checks=(bad,))
    after = Attempt(
        change="recalibrate", recipe='[quantize]\ncalibration = "mse"\n', size_bytes=11, checks=(good,)
    )
    worse = replace(after, change="halve")
    remedy = Remedy(before=before, attempts=(after, worse), chosen=0)
    page = read(html_page(replace(report, findings=(found,), remedy=remedy)))
    assert "fc<1>" in page.text
    assert "scales along axis 1" in page.text
    assert "recalibrate heals it." in page.text
    assert 'calibration = "mse"' in page.text
    waiting = Remedy(before=before, untried=("16-bit activations",))
    assert "16-bit activations" in read(html_page(replace(report, remedy=waiting))).text
