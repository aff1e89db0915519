"""The private names of dependencies that this project uses: a new version of a dependency may change any of them.

`constraints.txt` has the versions in which they are as expected.
"""

from __future__ import annotations

import ast
import builtins
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

import scistream

pytestmark = pytest.mark.no_cover  # the source is read, not run

ROOT = Path(scistream.__file__).parent

PRIVATE: dict[str, dict[str, set[str]]] = {
    "reactors.py": {"twisted.internet.tcp.Port": {"_buildAddr", "_fromListeningDescriptor", "_logger"}},
    "s2ds/relay/openssl.py": {
        "OpenSSL.SSL.Connection": {"_from_ssl", "_into_ssl", "_raise_ssl_error", "_reverse_mapping", "_ssl"},
        "cryptography": {"cryptography.hazmat.bindings.openssl.binding"},
    },
    "s2ds/relay/poller.py": {
        "twisted.internet.epollreactor.EPollReactor": {
            "_doReadOrWrite",
            "_justStopped",
            "_newTimedCalls",
            "_pendingTimedCalls",
            "_poller",
            "_selectables",
            "_started",
        },
    },
    "state_machines.py": {"automat": {"__automat_data__", "__automat_transitioner__", "_state", "automat._typed"}},
    "tls/files.py": {"cryptography.x509.ObjectIdentifier": {"_name"}},
}
"""For each file, the private names that it uses of each dependency."""

DOCUMENTED = {"_asdict", "_exit", "_fields", "_replace"}
"""Named tuples and `os` have these in their documentation."""

SPECIAL = {
    name for kind in (object, type, types.FunctionType, types.ModuleType, types.GenericAlias) for name in dir(kind)
} | {"__await__", "__future__", "__stderr__", "__struct_config__", "__struct_fields__", "__version__"}

OF_THE_LANGUAGE = SPECIAL | set(dir(builtins))


def own_names(trees: dict[str, ast.Module]) -> set[str]:
    """Return every name that some file of the project defines."""
    names: set[str] = set()
    for node in (node for tree in trees.values() for node in ast.walk(tree)):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                names.add(node.name)
            case ast.Attribute(value=ast.Name(id="self" | "cls"), ctx=ast.Store()):
                names.add(node.attr)
            case ast.Name(ctx=ast.Store()):
                names.add(node.id)
    return names


def is_private(name: str) -> bool:
    return name.startswith("_") and name not in OF_THE_LANGUAGE | DOCUMENTED


def private_uses(tree: ast.Module) -> Iterator[tuple[str, bool]]:
    """Yield each private name that is used, and whether it belongs to `self`, which may inherit it."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name) if is_private(name):
                yield name, True
            case ast.Attribute(attr=name) if is_private(name):
                yield name, False
            case ast.Call(
                func=ast.Name(id="getattr" | "setattr" | "hasattr"), args=[_, ast.Constant(value=str(name)), *_]
            ):
                if is_private(name):
                    yield name, False
            case ast.ImportFrom(module=str(module), level=0) if not module.startswith("scistream"):
                for name in [module, *(f"{module}.{alias.name}" for alias in node.names)]:
                    if any(is_private(part) for part in name.split(".")) or module.endswith(".binding"):
                        yield module, False
            case ast.Import():
                for alias in node.names:
                    if any(is_private(part) for part in alias.name.split(".")):
                        yield alias.name, False


def foreign_names(code: dict[str, str]) -> dict[str, set[str]]:
    """Return the private names of others in each file.

    A name that this project defines for itself as well counts where PRIVATE has it, and for names that PRIVATE has for
    any file also wherever it is used on anything but `self`.
    """
    trees = {name: ast.parse(text) for name, text in code.items()}
    own = own_names(trees)
    listed = {name: set().union(*kinds.values()) for name, kinds in PRIVATE.items()}
    everywhere = set().union(*listed.values())
    found: dict[str, set[str]] = {}
    for name, tree in trees.items():
        names = {
            used
            for used, of_self in private_uses(tree)
            if used not in own or used in listed.get(name, ()) or (used in everywhere and not of_self)
        }
        if names:
            found[name] = names
    return found


def test_private_names_of_dependencies_are_used_where_this_list_has_them_and_nowhere_else() -> None:
    code = {str(file.relative_to(ROOT)): file.read_text() for file in sorted(ROOT.rglob("*.py"))}
    expected = {name: set().union(*kinds.values()) for name, kinds in PRIVATE.items()}
    assert foreign_names(code) == expected


def test_a_private_name_of_a_dependency_is_in_one_file_only() -> None:
    every = [(kind, name) for kinds in PRIVATE.values() for kind, names in kinds.items() for name in names]
    assert len(every) == len(set(every))


def test_each_way_to_use_a_private_name_is_seen() -> None:
    code = {
        "a.py": "class A:\n  def f(self, x):\n    self._mine = self._ssl = 1\n    return x._mine, x.__dict__",
        "b.py": "def f(x):\n    return x._theirs",
        "c.py": "def f(x):\n    return getattr(x, '_theirs', None)",
        "d.py": "from twisted.python._shellcomp import shellComplete",
        "e.py": "from twisted.internet.base import _ThreePhaseEvent",
        "f.py": "import twisted.python._url",
        "g.py": "class A(Base):\n    def f(self):\n        return self._inherited",
        "h.py": "def f(connection):\n    return connection._ssl",
    }
    assert foreign_names(code) == {
        "b.py": {"_theirs"},
        "c.py": {"_theirs"},
        "d.py": {"twisted.python._shellcomp"},
        "e.py": {"twisted.internet.base"},
        "f.py": {"twisted.python._url"},
        "g.py": {"_inherited"},
        "h.py": {"_ssl"},
    }
