"""Imports lead downwards only, no party imports another, and a class name means one thing."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import scistream

pytestmark = pytest.mark.no_cover  # the source is read, not run

ROOT = Path(scistream.__file__).parent
PARTIES = {"s2uc", "s2cs", "s2ds", "app"}
ABOVE_ALL = {"scistream.demo", "scistream.cli", "scistream.check", "scistream.reference"}
"""Packages above the parties: they may import all parties, and no party imports them."""
OF_EACH_MACHINE = {"Stream", "Core", "Effects", "Operation", "Reservation", "Update", "Release"}
"""The classes of which each machine has its own: the parts of the pattern, and the data of its states."""
OF_EACH_PLUGIN = {"Options"}
"""twistd calls it so."""
OF_EACH_LIBRARY = {"Client", "Stream"}
"""The library without coroutines has the names of the other."""
FILES = sorted(ROOT.rglob("*.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, *, top_only: bool = False) -> set[str]:
    """Return the full names of everything that a module imports; with `top_only` only its imports at import time."""
    package = name_of(path) if path.name == "__init__.py" else name_of(path).rpartition(".")[0]
    return imported(path.read_text(), package, top_only=top_only)


def imported(code: str, package: str, *, top_only: bool) -> set[str]:
    tree = ast.parse(code)
    found: set[str] = set()
    for node in run_at_import(tree) if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def run_at_import(node: ast.AST) -> Iterator[ast.AST]:
    """Yield all nodes except for those inside functions."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from run_at_import(child)


def room(module: str) -> str:
    """Return the part of the project that a module belongs to: a package, or the module itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


def within(names: set[str], *packages: str) -> set[str]:
    return {name for name in names if any(f"{name}.".startswith(f"{package}.") for package in packages)}


EVERY_FILE = pytest.mark.parametrize("path", FILES, ids=name_of)


def test_there_is_something_to_look_at() -> None:
    assert {room(name_of(path)) for path in FILES} >= {*PARTIES, "protocol", "links", "tls", "config", "logs"}
    assert "scistream.protocol.messages.Message" in imports(ROOT / "protocol" / "codec.py")
    assert "twisted.logger.Logger" in imports(ROOT / "logs.py", top_only=True)


@EVERY_FILE
def test_no_party_imports_another_and_nothing_below_imports_a_party(path: Path) -> None:
    module = name_of(path)
    if within({module}, *ABOVE_ALL):
        return
    others = {f"scistream.{party}" for party in PARTIES} - {f"scistream.{room(module)}"}
    assert within(imports(path), *others) == set()


@EVERY_FILE
def test_nothing_imports_what_stands_above_the_parties(path: Path) -> None:
    if not within({name_of(path)}, *ABOVE_ALL):
        assert within(imports(path), *ABOVE_ALL) == set()


FLOORS = (
    {"scistream", "__version__", "timing", "text_kinds", "explanations"},
    {"logs", "durations", "wrapping", "file_lock", "protocol", "os_process", "standard_streams", "resources"},
    {"systemd"},
    {"units", "tables", "paging", "state_machines", "reactors", "config"},
    {"tls", "log_output"},
    {"pki"},
    {"links"},
    {"shared_settings", "setup_problems", "awaitable"},
    {"reloading", "cli_support", "http"},
    {"twistd"},
    PARTIES,
    {"demo", "check", "reference"},
    {"cli"},
    {"entry"},
)
"""Each part imports parts of lower floors only."""


@EVERY_FILE
def test_imports_lead_to_lower_floors(path: Path) -> None:
    here = room(name_of(path))
    (floor,) = (number for number, rooms in enumerate(FLOORS) if here in rooms)
    below = {f"scistream.{lower}" for rooms in FLOORS[:floor] for lower in rooms}
    own = within(imports(path), "scistream") - {"scistream"}  # which has the version alone
    assert own == within(own, f"scistream.{here}", *below)


@pytest.mark.parametrize("path", sorted((ROOT / "s2ds" / "relay").glob("*.py")), ids=name_of)
def test_the_data_path_knows_nothing_of_what_uses_it(path: Path) -> None:
    assert within(imports(path), "scistream.s2ds.elements", "scistream.s2ds.probe") == set()


NO_IO = ("twisted", "socket", "ssl", "OpenSSL", "sqlite3", "os", "time", "asyncio", "threading", "subprocess")


@pytest.mark.parametrize("path", sorted((ROOT / "protocol").glob("*.py")), ids=name_of)
def test_the_protocol_does_no_input_or_output(path: Path) -> None:
    assert within(imports(path), *NO_IO) == set()


MACHINES = sorted(ROOT.rglob("machine.py"))
PARTS = [ROOT / "s2cs" / "machine_core.py", *sorted((ROOT / "s2cs" / "steps").glob("*.py"))]
"""Files that machines are made of beside their tables."""


def test_each_party_has_a_machine_and_the_parts_of_machines_are_there() -> None:
    assert len(MACHINES) == len(PARTIES)
    assert {path.name for path in PARTS} >= {"machine_core.py", "hello.py", "release.py", "request.py", "targets.py"}


@pytest.mark.parametrize("path", [*MACHINES, *PARTS], ids=name_of)
def test_a_machine_does_no_input_or_output(path: Path) -> None:
    found = imports(path)
    assert within(found, "socket", "sqlite3", "time", "asyncio", "threading", "OpenSSL") == set()


@pytest.mark.parametrize("path", [*MACHINES, *PARTS, ROOT / "state_machines.py"], ids=name_of)
def test_a_machine_imports_nothing_of_twisted_but_types(path: Path) -> None:
    assert within(imported(without_types(path.read_text()), "scistream", top_only=False), "twisted") == set()


def without_types(code: str) -> str:
    """Return the code of a module without the imports that only a type checker reads."""
    tree = ast.parse(code)
    tree.body = [
        node for node in tree.body if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    ]
    return ast.unparse(tree)


def test_an_import_for_types_only_is_told_from_one_that_runs() -> None:
    code = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from twisted.logger import Logger"
    assert within(imported(code, "scistream", top_only=False), "twisted") == {"twisted.logger.Logger"}
    assert within(imported(without_types(code), "scistream", top_only=False), "twisted") == set()


@pytest.mark.parametrize("path", [*MACHINES, *PARTS], ids=name_of)
def test_a_machine_imports_nothing_that_stands_above_it(path: Path) -> None:
    party = f"scistream.{room(name_of(path))}"
    rooms_above = ["service", "client", "cli", "controller", "stream", "gateway", "tap", "store"]
    assert within(imports(path), *(f"{party}.{above}" for above in rooms_above)) == set()
    own = within(imports(path), "scistream")
    assert own == within(own, party, "scistream.protocol", "scistream.state_machines")


def test_what_machines_share_imports_only_the_protocol_and_time_limits() -> None:
    own = within(imports(ROOT / "state_machines.py"), "scistream")
    assert own == within(own, "scistream.protocol", "scistream.timing")


@EVERY_FILE
def test_only_what_machines_share_touches_private_names_of_automat(path: Path) -> None:
    if path.name == "state_machines.py":
        return
    assert "__automat_" not in path.read_text()
    assert [name for name in within(imports(path), "automat") if "._" in name] == []


@EVERY_FILE
def test_no_module_installs_the_global_reactor_by_being_imported(path: Path) -> None:
    assert within(imports(path, top_only=True), "twisted.internet.reactor") == set()


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("from twisted.internet import reactor", True),
        ("import twisted.internet.reactor", True),
        ("if True:\n    from twisted.internet import reactor", True),
        ("class A:\n    from twisted.internet import reactor", True),
        ("def f():\n    from twisted.internet import reactor", False),
        ("from twisted.internet import defer", False),
    ],
)
def test_an_import_of_the_reactor_is_seen_wherever_it_runs_at_import(code: str, found: bool) -> None:
    assert ("twisted.internet.reactor" in imported(code, "scistream", top_only=True)) is found


def test_a_relative_import_is_known_by_its_full_name() -> None:
    code = "from . import pool\nfrom .machine import Core\nfrom ..s2ds import ports"
    names = {"scistream.s2cs.pool", "scistream.s2cs.machine.Core", "scistream.s2ds.ports"}
    assert imported(code, "scistream.s2cs", top_only=False) == names


def test_no_two_classes_have_the_same_name() -> None:
    names = Counter(
        node.name for path in FILES for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)
    )
    twice = {name for name, count in names.items() if count > 1}
    assert twice <= OF_EACH_MACHINE | OF_EACH_PLUGIN | OF_EACH_LIBRARY
