"""All time limits are in `timing.py`, each with its reason, and each is used."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import scistream
from scistream import timing

pytestmark = pytest.mark.no_cover  # the source is read, not run

ROOT = Path(scistream.__file__).parent
FILES = sorted(path for path in ROOT.rglob("*.py") if path.name != "timing.py")
LINES = Path(timing.__file__).read_text().splitlines()
LIMITS = {name: value for name, value in vars(timing).items() if name.isupper() and not name.startswith("_")}
WAITS = {"callLater": 0, "addTimeout": 0, "deferLater": 1, "sleep": 0, "settimeout": 0, "wait": 0, "join": 0}
"""Calls that wait, and the positional argument that says how long."""
OF_TIME = re.compile(r"seconds|patience|timeout|grace|again|within|every|interval|delay|lifetime", re.IGNORECASE)
NO_TIME = {
    "MAX_PROBE_SECONDS": "the most that the protocol allows in a field",
    "EMPTY_A_SECOND": "a rate",
    "_CONNECTIONS_A_SECOND": "a rate",
    "_TIMES_THE_RATE": "a factor",
}
"""Constants elsewhere with names like those of times."""


def test_each_limit_is_one_line_with_its_reason() -> None:
    said = [line for line in LINES if re.match(r"[A-Z][A-Z_]* = ", line)]
    assert len(said) == len(LIMITS) > 70
    for line in said:
        assert re.fullmatch(r"[A-Z_]+ = \S.*?  # .{15,}", line), line


def test_each_limit_is_used() -> None:
    source = "\n".join(path.read_text() for path in FILES)
    assert [name for name in LIMITS if not re.search(rf"\btiming\.{name}\b", source)] == []


def test_no_limit_is_below_nothing_and_what_is_doubled_has_room_for_it() -> None:
    assert all(value > 0 for value in LIMITS.values() if isinstance(value, float))
    assert timing.FIRST_REPEAT < timing.LONGEST_REPEAT
    assert timing.FIRST_RECONNECT < timing.LONGEST_RECONNECT
    assert timing.FIRST_WRONG_KEY < timing.LONGEST_WRONG_KEY < timing.FIRST_LINE
    assert timing.ELEMENT_AGAIN < timing.LONGEST_ELEMENT_AGAIN
    assert timing.TURN_POLL < timing.LONGEST_TURN_POLL < timing.TURN


def test_an_outer_party_gives_up_later_than_an_inner_one() -> None:
    assert sum(timing.NAME_SERVER_TRIES) < timing.NAME_LOOKUP < timing.TARGET_LOOKUP < timing.GATEWAY_ANSWER
    assert timing.GATEWAY_ANSWER < timing.PROBE_UPDATE
    assert timing.GATEWAY_ANSWER < timing.FACILITY_ANSWER
    assert timing.DIAGNOSIS_CONNECT + timing.DIAGNOSIS_WAIT < timing.PROBE_CONNECT
    assert timing.ELEMENT_ANSWER < timing.ELEMENT_START < timing.ELEMENT_BUSY


def own_limits(tree: ast.Module) -> Iterator[str]:
    """Yield the times that a module defines or writes itself."""
    for node in tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        name = target.id if isinstance(target, ast.Name) and is_number(getattr(node, "value", None)) else ""
        if name.isupper() and OF_TIME.search(name) and name not in NO_TIME:
            yield name
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        given = [keyword.value for keyword in call.keywords if keyword.arg == "timeout"]
        if name in WAITS:
            given += call.args[WAITS[name] :][:1]
        yield from (ast.unparse(call) for value in given if is_number(value))


def is_number(node: ast.AST | None) -> bool:
    """Return True if a node is a literal number other than 0."""
    if isinstance(node, ast.BinOp):
        return is_number(node.left) and is_number(node.right)
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float) and bool(node.value)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_other_module_has_time_limits_of_its_own(path: Path) -> None:
    assert list(own_limits(ast.parse(path.read_text()))) == []


@pytest.mark.parametrize(
    "code",
    [
        "PATIENCE = 3.0",
        "START_AGAIN: float = 24 * 3600.0",
        "reactor.callLater(3, f)",
        "deferLater(reactor, 0.1)",
        "socket.create_connection(address, timeout=5)",
        "thread.join(1.5)",
        "asked = link.ask(command, timeout=30.0)",
    ],
)
def test_a_time_limit_elsewhere_is_found(code: str) -> None:
    assert len(list(own_limits(ast.parse(code)))) == 1


@pytest.mark.parametrize("code", ["TURNS = 128", "reactor.callLater(0, f)", "reactor.callLater(timing.POLL, f)"])
def test_what_is_no_time_limit_is_not_found(code: str) -> None:
    assert list(own_limits(ast.parse(code))) == []
