"""The page about JSON output names the keys that the commands print, and every command that prints them.

`keys_of` is for the tests of the commands that need facilities: see tests/e2e/test_watch.py.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import scistream.cli
import scistream.s2uc.cli
from scistream.demo.view import Summary
from scistream.explanations import Explanation
from scistream.s2cs.store.database import Store
from scistream.s2cs.store.usage_cli import Usage
from scistream.s2uc.facilities import FacilityCheck
from scistream.s2uc.history import RememberedStream
from support.command_tree import every_command
from support.json_page import all_items, commands_described, keys_of

ROOT = Path(__file__).parents[2]


def test_every_command_with_json_is_described() -> None:
    described: dict[str, set[str]] = {"s2uc": set(), "scistream": set()}
    for path, command in every_command():
        program, _, name = path.partition(" ")
        if program in described and any("--json" in parameter.opts for parameter in command.params):
            described[program].add(name)
    for program, names in described.items():
        assert names == commands_described(program)
    assert commands_described("appctrl") == {"prod", "cons"}
    assert len(all_items()) > 25


def test_objects_made_of_structures_have_their_fields() -> None:
    assert keys_of("s2uc", "``explain``") == list(Explanation._fields)
    assert keys_of("s2uc", "``list``") == list(RememberedStream.__struct_fields__)
    assert keys_of("scistream", "``demo``") == [field.name for field in fields(Summary)]
    assert keys_of("scistream", "``usage``") == [field.name for field in fields(Usage)]
    page = (ROOT / "docs" / "reference" / "json.rst").read_text()
    facility = page.partition("Each facility has ")[2].partition(".")[0].replace(" and", ",")
    assert [word.strip(" `\n") for word in facility.split(",")] == list(FacilityCheck.__struct_fields__)


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Any]:
    """Return a function that runs a command of `scistream` and returns its last line, decoded."""

    def run(*arguments: str, status: int = 0) -> Any:
        ended = CliRunner().invoke(scistream.cli.main, [*arguments, "--json"])
        assert ended.exit_code == status, ended.output
        return json.loads(ended.stdout.splitlines()[-1])

    return run


def test_the_commands_of_an_authority_print_these_keys(run: Callable[..., Any], tmp_path: Path) -> None:
    pki, home = str(tmp_path / "pki"), str(tmp_path / "home")
    csr, key = f"{home}/ada@lab.example.csr", f"{home}/ada@lab.example.key"
    made = {
        "``pki init``": run("pki", "init", pki, "--facility", "Lab"),
        "``pki issue``": run("pki", "issue", pki, "server", "s2cs.lab.example"),
        "``pki request``": run("pki", "request", "user", "ada@lab.example", "--out", home),
        "``pki sign``": run("pki", "sign", pki, csr, "--kind", "user", "--name", "ada@lab.example"),
        "``pki install``": run("pki", "install", f"{pki}/ada@lab.example.pem", "--key", key, str(tmp_path / "there")),
        "``pki show``": run("pki", "show", f"{pki}/ca.pem"),
        "``pki list``": run("pki", "list", pki)[0],
        "``pki renew``": run("pki", "renew", pki, "s2cs.lab.example"),
        "``pki revoke``": run("pki", "revoke", pki, "s2cs.lab.example"),
        "``pki crl``": run("pki", "crl", pki),
    }
    for name, told in made.items():
        assert list(told) == keys_of("scistream", name), name


def test_the_commands_of_an_operator_print_these_keys(run: Callable[..., Any], tmp_path: Path) -> None:
    store = tmp_path / "s2cs.sqlite"
    Store(store).close()
    with closing(sqlite3.connect(store)):
        assert list(run("store", "check", str(store))) == keys_of("scistream", "``store check``")
        assert run("usage", str(store)) == []
    policy = tmp_path / "policy.toml"
    policy.write_text("")
    assert list(run("examples", str(tmp_path / "examples"))) == keys_of("scistream", "``examples``")
    assert list(run("policy", "check", str(policy))) == keys_of("scistream", "``policy check``")


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (["pki", "issue", "nowhere", "client", "x"], "usage", "client"),
        (["pki", "list", "/nowhere"], "certificate", "/nowhere"),
        (["policy", "check", "/nowhere"], "configuration", "/nowhere"),
        (["store", "check", "/nowhere"], "configuration", "/nowhere"),
        (["usage", "/nowhere", "--since", "yesterday"], "usage", "--since"),
        (["demo", "--num-conn", "0"], "usage", "--num-conn"),
    ],
)
def test_a_failure_is_the_last_line_with_these_keys(
    run: Callable[..., Any], arguments: list[str], code: str, named: str
) -> None:
    told = run(*arguments, status=2)
    assert list(told) == keys_of("", "Failure")
    assert list(told["error"]) == ["code", "msg", "remedy"]
    assert told["error"]["code"] == code
    assert named in told["error"]["msg"]
    assert told["error"]["remedy"]
