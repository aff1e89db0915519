"""The pages in docs/, held to the code; the tests that they name are looked for in test_promises.py."""

from __future__ import annotations

import re
import shlex
import textwrap
from pathlib import Path

import click
import pytest

import scistream.app.cli
import scistream.s2uc.cli
from scistream.config import parse_chosen_ports
from scistream.s2cs.policy import RuleSection, load_policy
from scistream.s2cs.rules import Asked, Standing
from scistream.security.tls import Identity

ROOT = Path(__file__).parents[2]


def test_the_page_of_policies_says_what_the_code_would_say(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "policy.rst").read_text()
    example = textwrap.dedent("    " + page.partition("# policy.toml\n    ")[2].partition("\n\n")[0])
    (tmp_path / "policy.toml").write_text(example.replace("pki/ca.pem", "none"))
    policy = load_policy(tmp_path / "policy.toml")
    refused = policy.decide(Identity("none", "ada@lab.example"), Asked("PROD", 10_000.0, 1), Standing())
    assert not refused.allowed
    assert page.count(refused.reason) == 2
    settings = set(RuleSection.__struct_fields__) - {"name", "issuer", "identities"}
    assert settings == set(re.findall(r"^``(\w+)`` ", page, re.MULTILINE))


HOW_TO = sorted((ROOT / "docs" / "howto").glob("*.rst"))
COMMANDS: dict[str, click.Group] = {"s2uc": scistream.s2uc.cli.main, "appctrl": scistream.app.cli.main}

FIRST_OF_CONNECTIONS = 32768
"""The first port that Linux gives to outgoing connections, unless it is set otherwise."""


@pytest.mark.parametrize("page", HOW_TO, ids=lambda page: page.stem)
def test_a_how_to_gives_commands_and_settings_that_can_be_read_and_the_readme_names_it(page: Path) -> None:
    text = page.read_text()
    for line in re.findall(r"^ +\$ ((?:s2uc|appctrl) .*)$|``(s2uc request [^`]*)``", text, re.MULTILINE):
        program, name, *arguments = shlex.split("".join(line))
        command = COMMANDS[program].commands[name]
        if name == "request" and "--prod" not in arguments:
            arguments += ["--prod", "lab.example:5000", "--cons", "centre.example:5000"]
        wishes = command.make_context(name, arguments, obj=None).params
        if name == "request":
            ports = wishes["listen_ports"]
            assert {len(numbers) for numbers in ports.values()} == {wishes["num_conn"]}
            assert all(port < FIRST_OF_CONNECTIONS for numbers in ports.values() for port in numbers)
    for ranges in re.findall(r'chosen_ports = "(.*?)"', text):
        assert all(last < FIRST_OF_CONNECTIONS for _, last in parse_chosen_ports(ranges))
    assert f"docs/howto/{page.name}" in (ROOT / "README.rst").read_text()
