"""The list of settings and the JSON Schemas: complete, with a description each, and in agreement with the daemons."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

import scistream.cli
from scistream import text_kinds
from scistream.log_output import FORMATS, LEVELS
from scistream.protocol.address import Address, parse_network
from scistream.reference.cli import NAMES
from scistream.reference.comments import comments_of
from scistream.reference.schema import schema_of
from scistream.reference.settings_list import FILES, settings_of
from scistream.s2ds.settings import MULTIPATH, WAN_CIPHERS
from scistream.shared_settings import parse_chosen_ports, parse_ports
from scistream.units import parse_rate, parse_seconds, parse_size

ROOT = Path(__file__).parents[2]
EACH_FILE = pytest.mark.parametrize("name", sorted(FILES))


def keys_of(table: dict[str, Any], place: str = "") -> set[str]:
    """Return the keys of parsed TOML as the comments have them."""
    found = set()
    for key, value in table.items():
        found.add(f"{place}{key}")
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, dict):
                found |= keys_of(inner, f"{place}{key}.")
    return found


@EACH_FILE
def test_each_setting_of_a_file_is_listed_with_type_description_and_what_a_change_takes(name: str) -> None:
    found = settings_of(FILES[name])
    assert len(found) > 5
    shown = keys_of(tomllib.loads((ROOT / "conf" / f"{name}.toml").read_text()))
    assert shown <= {setting.key.replace("[]", "") for setting in found}
    for setting in found:
        assert setting.description, setting.key
        assert setting.reload in ("reload", "restart", "at the next command"), setting.key


def test_types_units_and_defaults_are_those_of_the_code() -> None:
    found = {setting.key: setting for setting in settings_of(FILES["s2ds"])}
    assert found["capacity"].type == 'rate in bit/s, such as "10Gbit"'
    assert found["capacity"].default == '"10Gbit"'
    assert found["limits.owner_share"].type == "whole number from 1 to 100"
    assert found["elements"].type == 'whole number or "auto"'
    assert found["app_networks"].type == 'list, each: network, such as "192.0.2.0/24"'
    assert (found["capacity"].reload, found["elements"].reload, found["wan.paths"].reload) == (
        "reload",
        "restart",
        "restart",
    )
    of_server = {setting.key: setting for setting in settings_of(FILES["s2cs"])}
    assert of_server["gateways[].name"].default is None
    assert of_server["release_broken_after"].default == '""'


def test_the_command_knows_each_file() -> None:
    assert set(NAMES) == set(FILES)


def test_each_pattern_is_explained() -> None:
    named = {name: value for name, value in vars(text_kinds).items() if name.isupper() and not name.startswith("_")}
    del named["WORDS"]
    assert set(named.values()) == set(text_kinds.WORDS)


# -- comments


def test_the_comment_of_a_setting_is_the_one_above_it() -> None:
    text = """# The head of the file
# is no comment of a setting.

# Of a,
# in two lines:
#   an example
# and more.
a = 1
b = 2  # has the same one

c = 3

# Of the section.
[part]
d = 4
# Of e.
#
# A second paragraph.
e = 5

[[other]]
f = 6
"""
    assert comments_of(text) == {
        "a": "Of a, in two lines:\n  an example\nand more.",
        "b": "Of a, in two lines:\n  an example\nand more.",
        "c": "",
        "part": "Of the section.",
        "part.d": "Of the section.",
        "part.e": "Of e.\n\nA second paragraph.",
        "other": "",
        "other.f": "",
    }


# -- schemas


def validator(name: str) -> Draft202012Validator:
    schema = schema_of(FILES[name])
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


@EACH_FILE
def test_the_example_file_fits_its_schema_and_each_setting_in_it_is_described(name: str) -> None:
    example = tomllib.loads((ROOT / "conf" / f"{name}.toml").read_text())
    assert list(validator(name).iter_errors(example)) == []
    printed = CliRunner().invoke(scistream.cli.main, ["schema", name])
    assert printed.exit_code == 0
    parts = json.loads(printed.stdout)["$defs"]
    silent = {
        (part, key)
        for part, found in parts.items()
        for key, each in found["properties"].items()
        if "description" not in each
    }
    assert silent == set()


SERVER = {"gateways": [{"name": "dtn1", "address": "127.0.0.1:5001"}]}


@pytest.mark.parametrize(
    ("name", "faulty"),
    [
        ("s2cs", {}),
        ("s2cs", {"gateways": [{"name": "dtn1"}]}),
        ("s2cs", {**SERVER, "listn": "127.0.0.1:5000"}),
        ("s2cs", {**SERVER, "listen": "127.0.0.1"}),
        ("s2cs", {**SERVER, "expires": "soon"}),
        ("s2cs", {**SERVER, "limits": {"links": 0}}),
        ("s2cs", {**SERVER, "limits": {"link": 7}}),
        ("s2ds", {"capacity": "fast"}),
        ("s2ds", {"ports": "5100"}),
        ("s2ds", {"elements": "many"}),
        ("s2ds", {"wan": {"multipath": "maybe"}}),
        ("s2ds", {"wan_cipher": "rot13"}),
        ("s2ds", {"app_networks": "10.0.0.0/8"}),
        ("s2ds", {"app_networks": ["my network"]}),
        ("s2ds", {"insecure": "yes"}),
        ("s2uc", {"facilities": [{"address": "lab.example"}]}),
        ("policy", {"rules": [{"name": "a"}]}),
        ("policy", {"administrators": [{"issuer": "ca.pem", "identities": "ada@lab.example"}]}),
    ],
)
def test_a_faulty_file_does_not_fit_the_schema(name: str, faulty: dict[str, Any]) -> None:
    assert list(validator(name).iter_errors(faulty))


def pattern_of(kind: str) -> Draft202012Validator:
    return Draft202012Validator({"type": "string", "pattern": kind})


KINDS: list[tuple[str, Callable[[str], Any], str]] = [
    (text_kinds.RATE, parse_rate, "0123456789.kKmMgGtTbBiItT/sSpP "),
    (text_kinds.TIME, parse_seconds, "0123456789.sSmMiInNhHdD "),
    (text_kinds.SIZE_OR_AUTO, parse_size, "0123456789.kKmMgGtTiIbB "),
    (text_kinds.ADDRESS, Address.parse, "0123456789.ab[]:-"),
    (text_kinds.NETWORK, parse_network, "0123456789.:/abcdef"),
    (text_kinds.PORT_RANGE, parse_ports, "0123456789- "),
    (text_kinds.PORTS_OR_NONE, parse_chosen_ports, "0123456789-, "),
]


@given(st.sampled_from(KINDS).flatmap(lambda kind: st.tuples(st.just(kind), st.text(kind[2], max_size=10))))
@settings(max_examples=500)
def test_an_editor_marks_nothing_that_a_daemon_accepts(
    drawn: tuple[tuple[str, Callable[[str], Any], str], str],
) -> None:
    (kind, parse, _), text = drawn
    try:
        parse(text)
    except ValueError:
        return
    assert pattern_of(kind).is_valid(text), text


@pytest.mark.parametrize(
    ("kind", "texts"),
    [
        (text_kinds.RATE_OR_UNLIMITED, ["10Gbit", "500", "2.5 Gbit/s", "100mbps", "unlimited"]),
        (text_kinds.TIME_OR_UNLIMITED, ["24h", "90", "15 min", "50ms", "2d", "unlimited"]),
        (text_kinds.TIME_OR_NONE, ["", "5m"]),
        (text_kinds.SIZE_OR_UNLIMITED, ["4096", "2TiB", "512M", "unlimited"]),
        (text_kinds.ADDRESS_OR_NONE, ["", "[2001:db8::1]:5000", "s2cs.example:5000"]),
        (text_kinds.PORTS_OR_UNLIMITED, ["5075, 5100-5200", "none", "unlimited"]),
    ],
)
def test_usual_values_fit_their_pattern_and_their_opposites_do_not(kind: str, texts: list[str]) -> None:
    assert all(pattern_of(kind).is_valid(text) for text in texts)
    assert not any(pattern_of(kind).is_valid(text) for text in ("fast", "10 apples", "::"))


@pytest.mark.parametrize(
    ("kind", "allowed"),
    [
        (text_kinds.LOG_FORMAT, FORMATS),
        (text_kinds.LOG_LEVEL, tuple(LEVELS)),
        (text_kinds.MULTIPATH, MULTIPATH),
        (text_kinds.CIPHER, WAN_CIPHERS),
    ],
)
def test_the_choices_of_the_schema_are_those_of_the_daemons(kind: str, allowed: tuple[str, ...]) -> None:
    assert kind == f"^({'|'.join(allowed)})$"
