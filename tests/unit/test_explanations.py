"""Every code that users meet has an explanation, and no other; the same is on the page about codes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import get_args

import pytest
from click.testing import CliRunner

import scistream.s2uc.cli
from scistream import cli_support
from scistream.app import handover
from scistream.explanations import EXPLANATIONS, KINDS, remedy_for
from scistream.protocol.errors import ErrorCode
from scistream.protocol.messages import Cause

ROOT = Path(scistream.s2uc.cli.__file__).parents[2]


def codes(kind: str) -> set[str]:
    return {one.code for one in EXPLANATIONS.values() if one.kind == kind}


def explain(*arguments: str) -> tuple[int, str]:
    ended = CliRunner().invoke(scistream.s2uc.cli.main, ["explain", *arguments])
    return ended.exit_code, ended.output


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scistream.s2uc.cli, "keep_secrets", lambda **_: None)
    monkeypatch.setattr(cli_support, "start_logging", lambda _verbose: None)


def test_every_code_of_the_protocol_and_every_cause_of_a_reset_is_explained() -> None:
    assert codes("error") == set(get_args(ErrorCode))
    assert codes("reset") == set(get_args(Cause))


def test_every_code_and_status_of_the_commands_is_explained() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "scistream").rglob("*cli*.py"))
    used = set(re.findall(r'\bfail\("([a-z-]+)"', sources)) | set(cli_support._CODES.values())
    assert codes("command") == used | {"usage", "configuration", "failed"}
    named = {int(status) for status in re.findall(r"(?:Exit statuses:|;) (\d+) ", cli_support.__doc__ or "")}
    assert codes("status") == {str(status) for status in named | {handover.CANNOT_EXECUTE, handover.NOT_FOUND}}


@pytest.mark.parametrize("code", list(EXPLANATIONS))
def test_an_explanation_says_what_it_means_who_acts_and_what_to_do(code: str) -> None:
    status, shown = explain(code)
    assert status == 0
    words = " ".join(shown.split())
    one = EXPLANATIONS[code]
    for part in (f"Meaning: {one.meaning}", f"Who acts: {one.who}", f"What to do: {one.remedy}", KINDS[one.kind]):
        assert part in words
    assert max(map(len, shown.splitlines())) <= 80
    assert json.loads(explain(code, "--json")[1]) == one._asdict()
    assert explain(f"error: {code.upper()}: something happened")[1] == shown
    assert one.meaning.endswith(".")
    assert one.remedy.endswith(".")


def test_a_wrong_code_is_refused_with_those_that_are_like_it() -> None:
    status, said = explain("no-prots")
    assert status == 2
    assert "did you mean no-ports?" in said
    assert "lists all" in explain("zzz")[1]


def test_without_a_code_all_are_listed() -> None:
    status, shown = explain()
    assert status == 0
    assert all(f"  {code} " in shown for code in EXPLANATIONS)
    assert [one["code"] for one in json.loads(explain("--json")[1])["codes"]] == list(EXPLANATIONS)


def test_a_code_of_a_later_version_has_a_remedy_too() -> None:
    assert "later version" in remedy_for("not-invented-yet")


def test_the_page_about_codes_has_every_kind() -> None:
    page = (ROOT / "docs" / "reference" / "codes.rst").read_text()
    assert set(re.findall(r"^\.\. explanations:: (\w+)$", page, re.MULTILINE)) == set(KINDS)
