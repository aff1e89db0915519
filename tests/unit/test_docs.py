"""The pages in docs/, held to the code; the tests that they name are looked for in test_promises.py."""

from __future__ import annotations

import importlib
import itertools
import re
import shlex
import sys
import textwrap
import tomllib
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click
import msgspec
import pytest
from state_tables import SAME, Table, tables_of

import scistream.app.cli
import scistream.s2uc.cli
from scistream.s2cs.policy.file import RuleSection, load_policy
from scistream.s2cs.policy.rules import CurrentUsage, RequestedStream
from scistream.s2cs.settings import S2CSConfig
from scistream.s2ds.settings import S2DSConfig
from scistream.s2uc.settings import S2UCConfig
from scistream.shared_settings import parse_chosen_ports
from scistream.tls.verify import Identity

ROOT = next(folder for folder in Path(__file__).parents if (folder / "setup.cfg").exists())
sys.path.insert(0, str(ROOT / "docs"))

from state_diagrams import BACK, LETTER, diagram_of  # noqa: E402

PAGES = [
    *sorted((ROOT / "docs").rglob("*.rst")),
    *sorted((ROOT / "examples").rglob("*.rst")),
    *sorted(ROOT.glob("*.rst")),
]


def test_the_page_of_policies_says_what_the_code_would_say(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "policy.rst").read_text()
    example = textwrap.dedent("    " + page.partition("# policy.toml\n    ")[2].partition("\n\n")[0])
    (tmp_path / "policy.toml").write_text(example.replace("pki/ca.pem", "none"))
    policy = load_policy(tmp_path / "policy.toml")
    refused = policy.decide(Identity("none", "ada@lab.example"), RequestedStream("PROD", 10_000.0, 1), CurrentUsage())
    assert not refused.allowed
    assert page.count(refused.reason) == 2
    settings = set(RuleSection.__struct_fields__) - {"name", "issuer", "identities"}
    assert settings == set(re.findall(r"^``(\w+)`` ", page, re.MULTILINE))


HOW_TO = sorted(page for page in (ROOT / "docs" / "howto").glob("*.rst") if page.stem != "index")
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
        if name == "request" and "--listen-port" in arguments:
            ports = wishes["listen_ports"]
            assert {len(numbers) for numbers in ports.values()} == {wishes["num_conn"]}
            assert all(port < FIRST_OF_CONNECTIONS for numbers in ports.values() for port in numbers)
    for ranges in re.findall(r'chosen_ports = "(.*?)"', text):
        assert all(last < FIRST_OF_CONNECTIONS for _, last in parse_chosen_ports(ranges))
    assert f"docs/howto/{page.name}" in (ROOT / "README.rst").read_text()


FILES = (S2CSConfig, S2DSConfig, S2UCConfig)


def sections_of_settings(text: str) -> Iterator[str]:
    """Yield the examples of TOML in a page that begin with a table."""
    for indent, first, rest in re.findall(r"^( +)(\[\[?[a-z]+\]\]?)\n((?:\1[^\n]+\n)*)", text, re.MULTILINE):
        yield textwrap.dedent(f"{indent}{first}\n{rest}")


@pytest.mark.parametrize("page", HOW_TO, ids=lambda page: page.stem)
def test_the_settings_that_a_how_to_shows_are_valid(page: Path, tmp_path: Path) -> None:
    for example in sections_of_settings(page.read_text()):
        first = example.partition("\n")[0]
        if first == "[[rules]]":
            file = tmp_path / "policy.toml"
            file.write_text(re.sub(r'issuer = ".*"', 'issuer = "none"', example))
            assert load_policy(file).rules
        else:
            assert any(can_be_in(kind, example) for kind in FILES), example


def can_be_in(file: type, example: str) -> bool:
    """Return True if an example can be a part of a configuration file."""
    try:
        msgspec.convert(tomllib.loads(example), file)
    except msgspec.ValidationError:
        return False
    return True


def test_examples_of_settings_are_found_in_the_guides_and_a_wrong_one_is_noticed() -> None:
    found = [example for page in HOW_TO for example in sections_of_settings(page.read_text())]
    assert {example.partition("\n")[0] for example in found} >= {"[wan]", "[[gateways]]", "[[rules]]", "[http]"}
    assert not any(can_be_in(file, '[wan]\nadvertised = "203.0.113.20"\n') for file in FILES)


def test_the_architecture_page_has_a_paragraph_for_each_package() -> None:
    page = (ROOT / "docs" / "architecture.rst").read_text()
    folders = [file.parent.relative_to(ROOT) for file in (ROOT / "scistream").rglob("__init__.py")]
    assert {".".join(folder.parts) for folder in folders} == set(
        re.findall(r"^``(scistream[.\w]*)``$", page, re.MULTILINE)
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_of_the_project_that_a_page_names_is_there(page: Path) -> None:
    named = r"``((?:scistream|docs|conf|examples|tests|bench|twisted|\.ci)/[^`\s]*|[A-Z]+\.rst)``"
    for name in re.findall(named, page.read_text()):
        if not name.startswith(("docs/_build", "bench/results")) and name != "scistream/1":  # made, and the ALPN
            assert (ROOT / name).exists(), name


class Box(NamedTuple):
    """A rectangle of a picture."""

    left: float
    right: float
    top: float
    bottom: float

    def meets(self, other: Box) -> bool:
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )


TABLES = [
    pytest.param(table, id=f"{module}-{number}")
    for module in (
        "scistream.s2cs.machine",
        "scistream.s2ds.machine",
        "scistream.s2uc.machine",
        "scistream.app.machine",
    )
    for number, table in enumerate(tables_of(importlib.import_module(module).__doc__), 1)
]


@pytest.mark.parametrize("table", TABLES)
def test_every_row_of_a_state_table_is_in_its_picture_but_those_in_which_nothing_happens(table: Table) -> None:
    diagram = diagram_of(table)
    assert set(diagram.order) == table.states
    rails = [*diagram.loops, *diagram.straight, *diagram.beside[-1], *diagram.beside[1]]
    for row in table.rows:
        sources = {state.partition(" (")[0] for state in row.states}
        drawn = [
            rail
            for rail in rails
            if set(rail.sources) == sources
            and (rail.targets == [row.next] or (row.next == SAME and rail in diagram.loops) or row.next == BACK)
            and all(given in " ".join(rail.label) for given in row.inputs)
        ]
        assert bool(drawn) is ("any" not in row.states), row


@pytest.mark.parametrize("table", TABLES)
def test_no_line_of_the_picture_of_a_state_table_crosses_words(table: Table) -> None:
    picture = ET.fromstring(diagram_of(table).svg("picture", "a title"))
    words: list[tuple[str, Box]] = []
    lines: list[Box] = []
    for shape in picture.iter():
        if shape.tag.endswith("text"):
            x, y, width = float(shape.get("x", "")), float(shape.get("y", "")), len(shape.text or "") * LETTER
            left = x - {"start": 0.0, "middle": width / 2, "end": width}[shape.get("text-anchor", "")]
            words.append((shape.text or "", Box(left, left + width, y - 10, y + 2)))
        elif shape.get("class") == "edge":
            points = [tuple(map(float, pair.split(","))) for pair in re.findall(r"[-\d.]+,[-\d.]+", shape.get("d", ""))]
            lines += [
                Box(min(x, u) - 0.5, max(x, u) + 0.5, min(y, v) - 0.5, max(y, v) + 0.5)
                for (x, y), (u, v) in itertools.pairwise(points)
            ]
    assert len(lines) > len(table.states)
    for number, (text, box) in enumerate(words):
        assert not [line for line in lines if line.meets(box)], f"a line crosses {text!r}"
        assert not [other for other, another in words[number + 1 :] if another.meets(box)], f"words cross {text!r}"
