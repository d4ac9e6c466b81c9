"""Documents: links lead somewhere, tables are those of the results, no path of one machine is in them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]*)(#[^)\s]*)?\)")
PRIVATE = re.compile(rb"(?<![\w.])/(home/(?!ada/)|root/|Users/|work/)\w")


def tracked() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.decode().split("\0") if name]


def anchors(text: str) -> set[str]:
    """The anchors that headings get, as GitHub makes them."""
    headings = re.findall(r"^#+ +(.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def test_every_link_leads_somewhere() -> None:
    broken = []
    for document in (p for p in tracked() if p.suffix == ".md"):
        for target, anchor in LINK.findall(document.read_text("utf-8")):
            there = document.parent / target if target else document
            if not there.exists() or (anchor and anchor[1:] not in anchors(there.read_text("utf-8"))):
                broken.append(f"{document.relative_to(ROOT)}: {target}{anchor}")
    assert broken == []


def test_every_guide_and_decision_is_linked() -> None:
    texts = {p: p.read_text("utf-8") for p in tracked() if p.suffix == ".md"}
    linked = {(p.parent / target).resolve() for p, text in texts.items() for target, _ in LINK.findall(text)}
    folders = {p for p in linked if p.is_dir()}
    assert [p for p in texts if p not in linked and p.parent not in folders and p.parent != ROOT] == []


def test_tables_are_those_of_the_results() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/tables.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_path_of_one_machine_is_committed() -> None:
    found = []
    for path in tracked():
        data = path.read_bytes() if path.is_file() else b""
        if b"\0" not in data and PRIVATE.search(data):
            found.append(str(path.relative_to(ROOT)))
    assert found == []
