"""Every line that the project logs can be formatted: each field in its format is given where it is logged."""

from __future__ import annotations

import ast
import string
from collections.abc import Iterator
from pathlib import Path

import pytest

from scistream.log_output import RESERVED

PACKAGE = Path(__file__).parents[2] / "scistream"
LEVELS = frozenset({"debug", "info", "warn", "error", "critical", "failure", "emit"})


def logging_calls() -> Iterator[tuple[str, ast.Call]]:
    """Yield each call of a logger, and its location."""
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LEVELS):
                continue
            logger = ast.unparse(node.func.value).rpartition(".")[2]
            if logger in ("log", "_log", "logger", "_logger"):
                yield f"{file.relative_to(PACKAGE)}:{node.lineno}", node


def texts(node: ast.expr) -> list[str]:
    """Return the possible values of a format; a part made at run time, from names of fields, is always there."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return [left + right for left in texts(node.left) for right in texts(node.right)]
    if isinstance(node, ast.IfExp):
        return texts(node.body) + texts(node.orelse)
    if isinstance(node, ast.Name):
        return [""]
    raise AssertionError(f"write the format of a log line as a text, not as {ast.unparse(node)}")


CALLS = list(logging_calls())


def test_the_calls_are_found() -> None:
    assert len(CALLS) > 50


@pytest.mark.parametrize(("place", "call"), CALLS, ids=[place for place, _ in CALLS])
def test_every_field_of_a_log_line_is_given(place: str, call: ast.Call) -> None:
    assert isinstance(call.func, ast.Attribute)
    formats = call.args[1 if call.func.attr == "emit" else 0 :]
    assert len(formats) == 1, "the format is the last argument without a name"
    given = {keyword.arg for keyword in call.keywords if keyword.arg is not None}
    assert not any(name.startswith("log_") for name in given), "these are Twisted's own"
    assert not given & RESERVED, "these are keys of the lines of JSON: name the field differently"
    for text in texts(formats[0]):
        for _, name, spec, _ in string.Formatter().parse(text):
            if name is None:
                continue
            assert name, f"a field without a name in {text!r}"
            plain = name.split(".")[0].split("[")[0].removesuffix("()")
            assert plain in given, f"{place}: {{{name}}} is not given"
            assert not spec, f"{place}: a value that does not fit {spec!r} would spoil the line: format it before"
