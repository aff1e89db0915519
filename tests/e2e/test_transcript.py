"""The transcript in docs/protocol.rst, recorded once more."""

from __future__ import annotations

from pathlib import Path

from record_transcript import from_page, normalised, record

from support.protocol_page import PAGE


def test_the_programs_still_say_what_the_page_has(linux: None, tmp_path: Path) -> None:
    there = normalised(from_page(PAGE.read_text()))
    here = normalised([one for step in record(tmp_path) for one in step.said])
    assert there
    assert here == there, "docs/protocol.rst: run tests/e2e/record_transcript.py if that is meant"
