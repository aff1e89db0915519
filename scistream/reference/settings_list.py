"""All settings of the configuration files: type, unit, default, description, and whether a reload can change them.

Types and defaults come from the classes of the settings, descriptions from the comments of the example files.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import NODEFAULT
from msgspec.inspect import (
    BoolType,
    FloatType,
    IntType,
    ListType,
    NoneType,
    StrType,
    StructType,
    Type,
    UnionType,
    type_info,
)

from scistream import text_kinds
from scistream.reference.comments import comments_of
from scistream.reference.examples import CONF
from scistream.s2cs.policy.file import PolicyFile
from scistream.s2cs.service import NEEDS_RESTART as OF_SERVER
from scistream.s2cs.settings import S2CSConfig
from scistream.s2ds.service import NEEDS_RESTART as OF_GATEWAY
from scistream.s2ds.settings import S2DSConfig
from scistream.s2uc.settings import S2UCConfig


@dataclass(frozen=True)
class ConfigurationFile:
    """A kind of configuration file.

    :ivar title: who has it.
    :ivar fixed: the keys of settings that need a restart to change; None: the file is read anew each time.
    """

    name: str
    title: str
    kind: Any
    fixed: Collection[str] | None

    @property
    def comments(self) -> dict[str, str]:
        """The descriptions of its settings and sections."""
        return comments_of((CONF / f"{self.name}.toml").read_text(encoding="utf-8"))


FILES = {
    file.name: file
    for file in (
        ConfigurationFile("s2cs", "the control server", S2CSConfig, OF_SERVER),
        ConfigurationFile("s2ds", "a gateway", S2DSConfig, OF_GATEWAY),
        ConfigurationFile("s2uc", "the user", S2UCConfig, None),
        ConfigurationFile("policy", "who may request what", PolicyFile, ()),
    )
}


@dataclass(frozen=True)
class Setting:
    """One setting, or the heading of a section.

    :ivar key: such as ``limits.links``; ``gateways[].name`` in a section that may be there several times.
    :ivar type: in words, with the unit; empty for a section.
    :ivar default: as TOML; None if there is none, and the setting is required.
    :ivar description: paragraphs, each in a line; indented lines are examples.
    :ivar reload: what it takes to change it while the daemon runs.
    """

    key: str
    type: str
    default: str | None
    description: str
    reload: str


def settings_of(file: ConfigurationFile) -> list[Setting]:
    """Return all settings of a file, in the order of their classes, the sections last."""
    return list(_of_section(file, file.kind, "", file.comments))


def _of_section(file: ConfigurationFile, kind: Any, place: str, comments: dict[str, str]) -> Iterator[Setting]:
    fields = [(field, type_info(field.type)) for field in msgspec.structs.fields(kind)]
    for field, wanted in fields:
        if _section_type(wanted) is None:
            key = f"{place}{field.name}"
            yield Setting(key, _words(wanted), _default(field), _comment(comments, key), _reload(file, key))
    for field, wanted in fields:
        section = _section_type(wanted)
        if section is not None:
            several, inner = section
            key = f"{place}{field.name}"
            heading = f"{key}[]" if several else key
            yield Setting(heading, "", _default(field), _comment(comments, key), _reload(file, key))
            yield from _of_section(file, inner, f"{heading}.", comments)


def _comment(comments: dict[str, str], key: str) -> str:
    """Return the description of a setting, or that of the section around it."""
    plain = key.replace("[]", "")
    return comments.get(plain) or comments.get(plain.rpartition(".")[0], "")


def _section_type(wanted: Type) -> tuple[bool, Any] | None:
    """Return whether a section may be there several times, and its class; None for a plain setting."""
    options = wanted.types if isinstance(wanted, UnionType) else (wanted,)
    for option in options:
        if isinstance(option, StructType):
            return False, option.cls
        if isinstance(option, ListType) and isinstance(option.item_type, StructType):
            return True, option.item_type.cls
    return None


def _words(wanted: Type) -> str:
    """Describe a type, with its unit."""
    if isinstance(wanted, UnionType):
        return " or ".join(_words(option) for option in wanted.types if not isinstance(option, NoneType))
    if isinstance(wanted, ListType):
        return f"list, each: {_words(wanted.item_type)}"
    if isinstance(wanted, StrType):
        return text_kinds.WORDS.get(wanted.pattern or "", "text")
    if isinstance(wanted, BoolType):
        return "true or false"
    if isinstance(wanted, FloatType):
        return "number"
    assert isinstance(wanted, IntType), f"no setting is a {wanted}"
    least = f" from {wanted.ge}" if wanted.ge is not None else ""
    most = f" to {wanted.le}" if wanted.le is not None else ""
    return f"whole number{least}{most}"


def _default(field: msgspec.structs.FieldInfo) -> str | None:
    value = field.default if field.default_factory is NODEFAULT else field.default_factory()
    if value is NODEFAULT:
        return None
    if value is None or isinstance(value, msgspec.Struct):
        return ""
    return json.dumps(value, ensure_ascii=False)


def _reload(file: ConfigurationFile, key: str) -> str:
    if file.fixed is None:
        return "at the next command"
    top = key.partition(".")[0].partition("[")[0]
    return "restart" if top in file.fixed or key in file.fixed else "reload"
