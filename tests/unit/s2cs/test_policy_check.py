"""The command `scistream policy check`: its output for people and programs, and its exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import scistream.cli
from scistream.pki.authority import init_authority
from scistream.tls.verify import issuer_name, load_authority

LAB = "sha256:" + "a" * 64
POLICY = f"""
[[rules]]
name = "beamline-7"
issuer = "{LAB}"
identities = ["ada@lab.example"]
roles = ["PROD"]
rate = "5Gbit"
num_conn = 4
streams = 2
expires = "8h"
targets = ["10.1.0.0/16:7000"]
listen_ports = "5075-5078"

[[administrators]]
issuer = "{LAB}"
identities = ["operator@lab.example"]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "policy.toml"
    file.write_text(POLICY)
    return file


def check(file: Path, *arguments: str) -> Result:
    return CliRunner().invoke(scistream.cli.main, ["policy", "check", str(file), *arguments])


def test_a_sound_file_is_told_in_plain_words(file: Path) -> None:
    done = check(file)
    assert done.exit_code == 0
    first, rule, administrators = done.output.splitlines()
    assert first == f"{file}: valid, 1 rule; everything else is refused"
    assert rule == (
        f"rule 1 `beamline-7`: ada@lab.example of {LAB}: may request PROD, 5000 Mbit/s per stream, "
        "4 channels per stream, 2 streams at once, for 8h, WAN security encrypt, listen ports 5075-5078 by number, "
        "a producer at 10.1.0.0/16:7000"
    )
    assert administrators.startswith("administrators: operator@lab.example of ")


def test_a_sound_file_is_told_to_a_program(file: Path) -> None:
    told = json.loads(check(file, "--json").output)
    assert told["sound"]
    assert [(rule["number"], rule["name"], rule["roles"]) for rule in told["rules"]] == [(1, "beamline-7", ["PROD"])]


@pytest.mark.parametrize(
    ("arguments", "status", "line"),
    [
        ([], 0, "PROD: allowed by rule 1 `beamline-7` for at most 8h"),
        (["--rate", "5Gbit"], 0, "PROD: allowed by"),
        (
            ["--rate", "5001Mbit"],
            1,
            "rule 1 `beamline-7` allows at most 5000 Mbit/s per stream, but 5001 was requested",
        ),
        (["--num-conn", "5"], 1, "allows at most 4 channels per stream, but 5 were requested"),
        (["--expires", "9h"], 1, "allows a life of at most 8h, but 9h was requested"),
        (["--streams", "1"], 0, "PROD: allowed by"),
        (["--streams", "2"], 1, "allows at most 2 streams at once, and 2 exist"),
        (["--listen-port", "5075", "--listen-port", "5078"], 0, "PROD: allowed by"),
        (["--listen-port", "5075", "--listen-port", "5079"], 1, "listen ports 5075-5078, but 5079 was requested"),
        (["--target", "10.1.2.3:7000"], 0, "PROD: allowed by"),
        (["--target", "10.1.2.3:7000", "--target", "10.2.2.3:7000"], 1, "but not 10.2.2.3:7000"),
        (["--target", "lab.example:7000"], 1, "but not lab.example:7000"),
    ],
)
def test_what_would_be_decided_is_told_with_the_rule_that_decides(
    file: Path, arguments: list[str], status: int, line: str
) -> None:
    done = check(file, "--as", "ada@lab.example", "--role", "prod", *arguments)
    assert done.exit_code == status
    assert line in done.output
    assert done.output.count("\n") == 1
    assert json.loads(check(file, "--as", "ada@lab.example", "--role", "prod", "--json", *arguments).output)[
        "allowed"
    ] is (status == 0)


def test_both_roles_are_looked_at_unless_one_is_named(file: Path) -> None:
    done = check(file, "--as", "ada@lab.example")
    assert done.exit_code == 1
    prod, cons = done.output.splitlines()
    assert prod.startswith("PROD: allowed")
    assert cons == "CONS: refused (not-authorized): rule 1 `beamline-7` allows the role PROD, but CONS was requested"
    whole = json.loads(check(file, "--as", "ada@lab.example", "--json").output)
    assert [(one["role"], one["allowed"], one["rule"]["name"]) for one in whole["decisions"]] == [
        ("PROD", True, "beamline-7"),
        ("CONS", False, "beamline-7"),
    ]


def test_a_user_without_a_rule_is_refused_and_an_administrator_is_named_as_one(file: Path) -> None:
    done = check(file, "--as", "operator@lab.example")
    assert done.exit_code == 1
    assert "no rule of this facility's policy is for operator@lab.example" in done.output
    assert "operator@lab.example is an administrator" in done.output
    assert "administrator" not in check(file, "--as", "ada@lab.example").output


def test_the_issuer_may_be_left_out_if_there_is_only_one_or_named_by_its_file(file: Path, tmp_path: Path) -> None:
    authority = init_authority(tmp_path / "pki", "Another").certificate
    another = issuer_name(load_authority(authority, "issuer"))
    ada = ["--as", "ada@lab.example", "--role", "PROD"]
    assert check(file, *ada, "--issuer", str(authority)).exit_code == 1
    file.write_text(POLICY + POLICY.split("[[admin")[0].replace(LAB, another).replace("beamline-7", "visitors"))
    done = check(file, *ada)
    assert (done.exit_code, done.output) == (2, f"error: {file} names 2 issuers: choose one with --issuer\n")
    assert "`visitors`" in check(file, *ada, "--issuer", str(authority)).output
    assert "`beamline-7`" in check(file, *ada, "--issuer", LAB).output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--as", "ada@lab.example", "--issuer", "sha256:1"], "error: --issuer: 'sha256:1' is not a fingerprint"),
        (["--as", "ada@lab.example", "--issuer", "nowhere.pem"], "nowhere.pem does not exist"),
        (["--as", "ada@lab.example", "--target", "lab.example"], "'lab.example' has no port"),
        (["--as", "ada@lab.example", "--rate", "lots"], "'lots' is not a rate"),
        (["--rate", "10Gbit"], "which names the user"),
        (["--role", "PROD"], "which names the user"),
    ],
)
def test_wrong_usage_ends_with_status_2(file: Path, arguments: list[str], words: str) -> None:
    done = check(file, *arguments)
    assert done.exit_code == 2
    assert words in done.output


def test_a_broken_file_ends_with_status_2_and_one_line(file: Path) -> None:
    file.write_text(POLICY.replace("5Gbit", "lots"))
    for arguments in ([], ["--as", "ada@lab.example"]):
        done = check(file, *arguments)
        assert done.exit_code == 2
        [line] = done.output.splitlines()
        assert line.startswith(f"error: {file}: rule 1 `beamline-7`: rate: 'lots' is not a rate")
