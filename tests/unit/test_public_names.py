"""The public names of the libraries are those that their pages document, and both clients have the same calls."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from scistream.s2uc import blocking, client

API = Path(__file__).parents[2] / "docs" / "api"
PAGES = {
    "client": "scistream.s2uc.client",
    "blocking": "scistream.s2uc.blocking",
    "joining": "scistream.app.joining",
}
"""The page of each public module."""
OF_ASYNCHRONOUS = {"reactor", "Requested", "default_config"}
"""What only the library with coroutines has."""


@pytest.mark.parametrize("page", PAGES)
def test_the_page_of_a_module_documents_its_public_names(page: str) -> None:
    module = importlib.import_module(PAGES[page])
    documented = set()
    here = ""
    text = (API / f"{page}.rst").read_text()
    if module is blocking:
        shared = set(re.findall(r"``(\w+)``", text))
        assert all(getattr(blocking, name) is getattr(client, name) for name in shared)
        documented |= shared
    for line in text.splitlines():
        if found := re.match(r"\.\. (?:py:module|currentmodule):: (\S+)", line):
            here = found[1]
        elif found := re.match(r"\.\. auto(?:class|function|data|exception):: (\w+)", line):
            value = getattr(importlib.import_module(here), found[1])
            if here == module.__name__ or found[1] in module.__all__:
                assert getattr(module, found[1]) is value
                documented.add(found[1])
    assert documented == set(module.__all__)


@pytest.mark.parametrize("page", PAGES)
def test_every_public_name_has_a_docstring(page: str) -> None:
    module = importlib.import_module(PAGES[page])
    for name in module.__all__:
        value = getattr(module, name)
        assert inspect.getdoc(value), name
        for member, what in vars(value).items() if inspect.isclass(value) else ():
            if not member.startswith("_") and (callable(what) or isinstance(what, property | classmethod)):
                assert inspect.getdoc(what), f"{name}.{member}"


def members(kind: type[Any]) -> set[str]:
    return {name for name in vars(kind) if not name.startswith("_")}


def parameters(function: Any) -> dict[str, inspect.Parameter]:
    return {name: one for name, one in inspect.signature(function).parameters.items() if name != "timeout"}


@pytest.mark.parametrize("name", ["Client", "Stream"])
def test_the_blocking_library_has_every_call_of_the_other_with_the_same_parameters(name: str) -> None:
    asynchronous, blocks = getattr(client, name), getattr(blocking, name)
    assert members(asynchronous) - OF_ASYNCHRONOUS == members(blocks) - {"uid"}
    for member in members(blocks):
        if callable(getattr(blocks, member)):
            ours = {one: (each.default, each.annotation) for one, each in parameters(getattr(blocks, member)).items()}
            theirs = parameters(getattr(asynchronous, member))
            assert ours == {one: (each.default, each.annotation) for one, each in theirs.items() if one != "reactor"}, (
                member
            )
    assert set(blocking.__all__) == set(client.__all__) - OF_ASYNCHRONOUS
