"""Read a TOML file into a struct of settings, and report all problems at once.

A `SettingProblem` names the keys that it is about. Types are checked here. Values are checked by the method `problems`
of the struct (a text that is not a rate, two numbers that contradict each other); it is called even if some keys have
the wrong type, and its problems with those keys are left out.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import msgspec
from msgspec import NODEFAULT, Struct
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

BOM = b"\xef\xbb\xbf"
_MOST_SHOWN = 60
_MOST_PROBLEMS = 50
_WRONG: Any = object()
"""Placeholder for an invalid value that has been reported."""


class ConfigError(Exception):
    """A configuration file or a setting cannot be used. Each line of the message is a sentence for the user."""


class SettingProblem(NamedTuple):
    """A problem with a configuration file.

    :ivar keys: the keys of the settings involved, such as ``limits.links``; the first one begins the message.
    :ivar why: the value, and what is allowed.
    """

    keys: tuple[str, ...]
    why: str

    def __str__(self) -> str:
        return f"{self.keys[0]}: {self.why}"

    def below(self, section: str) -> SettingProblem:
        """Return the same problem with `section` prepended to its keys."""
        return SettingProblem(tuple(f"{section}.{key}" for key in self.keys), self.why)


class Section(Protocol):
    """The struct of a file or a section."""

    def problems(self) -> Iterable[SettingProblem]:
        """Return the problems with the values, whose types are right."""


AnySettings = TypeVar("AnySettings", bound=Section)


def load(path: Path, kind: type[AnySettings]) -> AnySettings:
    """Read a configuration file.

    :raises ConfigError: if it cannot be read, is not TOML, or has invalid, unknown or missing keys: a line for each.
    """
    settings, problems = read(path, kind)
    raise_if_any(path, problems)
    return settings


def read(path: Path, kind: type[AnySettings]) -> tuple[AnySettings, list[SettingProblem]]:
    """Read a configuration file; return the settings, with defaults for invalid ones, and the problems.

    :raises ConfigError: if it cannot be read, or is not TOML.
    """
    return checked(_parse(path), kind)


def checked(raw: dict[str, Any], kind: type[AnySettings]) -> tuple[AnySettings, list[SettingProblem]]:
    """Convert parsed TOML; return the settings, with defaults for invalid ones, and the problems."""
    found: list[SettingProblem] = []
    settings: AnySettings = _section(kind, raw, "", found)
    wrong = {key for problem in found for key in problem.keys}
    around = {path for key in wrong for path in _paths(key)}
    for problem in settings.problems():
        if not any(key in around or wrong.intersection(_paths(key)) for key in problem.keys):
            found.append(problem)
    return settings, found


def to_toml(settings: Any) -> str:
    """Return a struct of settings as TOML, with all keys. Optional sections that are not there are left out."""
    return "\n".join(_toml_lines(msgspec.to_builtins(settings), "")) + "\n"


def _toml_lines(values: dict[str, Any], place: str) -> Iterator[str]:
    """Yield the lines of a section: its keys first, and then the sections below it."""
    below: list[str] = []
    for key, value in values.items():
        name = f"{place}.{key}" if place else key
        if isinstance(value, dict):
            below += ["", f"[{name}]", *_toml_lines(value, name)]
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for item in value:
                below += ["", f"[[{name}]]", *_toml_lines(item, name)]
        elif value is not None:
            yield f"{key} = {_toml_value(value)}"
    yield from below


def _toml_value(value: Any) -> str:
    """Return a text, number, truth value or list of them as TOML, whose texts are written as those of JSON."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def raise_if_any(path: Path, problems: Sequence[SettingProblem | str]) -> None:
    """Report the problems of a file.

    :raises ConfigError: if there are any, with a line for each.
    """
    lines = [f"{path}: {problem}" for problem in problems[:_MOST_PROBLEMS]]
    if len(problems) > _MOST_PROBLEMS:
        lines.append(f"{path}: and {len(problems) - _MOST_PROBLEMS} more")
    if lines:
        raise ConfigError("\n".join(lines))


def unless(parse: Callable[[Any], Any], value: Any, *keys: str) -> Iterator[SettingProblem]:
    """Yield a problem if `parse` refuses a value with a ValueError."""
    try:
        parse(value)
    except ValueError as wrong:
        yield SettingProblem(keys, str(wrong))


def below(section: str, problems: Iterable[SettingProblem]) -> Iterator[SettingProblem]:
    """Prepend `section` to the keys of problems."""
    return (problem.below(section) for problem in problems)


def expanded(text: str) -> Path:
    """Return the path that a setting names, with ``~`` expanded.

    :raises ValueError: with a sentence, if there is no such home folder, or the name has a NUL character.
    """
    if "\0" in text:
        raise ValueError(f"{text!r} is not a file name: it has a NUL character")
    if not text.startswith("~"):
        return Path(text)
    name = text[1:].partition("/")[0]
    home = os.environ.get("HOME")
    if name:
        why = f"there is no user {name!r} on this machine"
    elif home is None:
        why = "HOME is not set, and this user has no home folder"
    else:
        why = f"HOME is {home!r}, which is not an absolute path"
    path = os.path.expanduser(text)
    if not os.path.isabs(path) or (not name and home == ""):
        raise ValueError(f"{text!r} cannot be expanded: {why}; write the whole path")
    return Path(path)


def user_folder(variable: str, default: str) -> Path:
    """Return the folder that an environment variable such as ``XDG_STATE_HOME`` names, or else the default.

    :param default: with ``~``.
    :raises ConfigError: naming the variable, if its value is not absolute, or it is unset and there is no home folder.
    """
    named = os.environ.get(variable)
    if named and os.path.isabs(named):
        return Path(named)
    if named:
        raise ConfigError(f"{variable}: {named!r} is not an absolute path: set an absolute path, or unset the variable")
    try:
        return expanded(default)
    except ValueError as wrong:
        raise ConfigError(f"{variable}: is not set, and its default {wrong}, in {variable}") from None


def _paths(key: str) -> Iterator[str]:
    """Yield a key and the sections around it: ``a.b[1].c``, ``a.b[1]``, ``a.b``, ``a``."""
    yield key
    for end in range(len(key) - 1, 0, -1):
        if key[end] in ".[":
            yield key[:end]


def _parse(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_bytes().removeprefix(BOM).decode())
    except OSError as problem:
        raise ConfigError(f"{path}: cannot be read: {problem.strerror}") from None
    except UnicodeDecodeError as wrong:
        raise ConfigError(f"{path}: is not TOML: it is not UTF-8 text ({wrong}); save it as UTF-8") from None
    except (ValueError, RecursionError) as wrong:  # tomllib.TOMLDecodeError, and the error of int() for a long number
        raise ConfigError(f"{path}: is not TOML: {wrong}") from None


def _section(kind: Any, raw: dict[str, Any], place: str, found: list[SettingProblem]) -> Any:
    """Return the struct of a section, with defaults or placeholders for invalid values."""
    fields = _fields(kind)
    values = {}
    allowed = ", ".join(sorted(fields))
    found += [
        SettingProblem((_join(place, key),), f"unknown key; the keys here are {allowed}")
        for key in raw
        if key not in fields
    ]
    for name, (field, wanted) in fields.items():
        key = _join(place, name)
        value: Any = _WRONG
        if name in raw:
            value = _value(wanted, raw[name], key, _default(field), found)
        elif field.required:
            found.append(SettingProblem((key,), "is missing, but required"))
        if value is not _WRONG:
            values[name] = value
        elif field.required:
            values[name] = [] if isinstance(wanted, ListType) else ""
    return kind(**values)


@cache
def _fields(kind: Any) -> dict[str, tuple[msgspec.structs.FieldInfo, Type]]:
    return {field.name: (field, type_info(field.type)) for field in msgspec.structs.fields(kind)}


def _value(wanted: Type, raw: Any, key: str, default: Any, found: list[SettingProblem]) -> Any:
    """Return a value that fits its type, or `_WRONG`."""
    options = wanted.types if isinstance(wanted, UnionType) else (wanted,)
    for option in options:
        if isinstance(option, StructType) and isinstance(raw, dict):
            return _section(option.cls, raw, key, found)
        if isinstance(option, ListType) and isinstance(raw, list):
            items = [
                _value(option.item_type, item, f"{key}[{number}]", NODEFAULT, found) for number, item in enumerate(raw)
            ]
            return _WRONG if any(item is _WRONG for item in items) else items
        if _is_one(option, raw):
            return raw
    such = "" if default in (NODEFAULT, None, "", []) else f", such as {_shown(default)}"
    words = " or ".join(_words(option) for option in options if not isinstance(option, NoneType))
    found.append(SettingProblem((key,), f"{_shown(raw)} is not valid here: write {words}{such}"))
    return _WRONG


def _is_one(wanted: Type, raw: Any) -> bool:
    if isinstance(wanted, IntType):
        number = isinstance(raw, int) and not isinstance(raw, bool)
        return number and (wanted.ge is None or raw >= wanted.ge) and (wanted.le is None or raw <= wanted.le)
    if isinstance(wanted, BoolType):
        return isinstance(raw, bool)
    if isinstance(wanted, FloatType):
        return isinstance(raw, int | float) and not isinstance(raw, bool)
    return isinstance(wanted, StrType) and isinstance(raw, str)


def _words(wanted: Type) -> str:
    """Describe what a value of this type looks like in a file."""
    if isinstance(wanted, StrType):
        return "text in quotes"
    if isinstance(wanted, BoolType):
        return "true or false"
    if isinstance(wanted, FloatType):
        return "a number"
    if isinstance(wanted, ListType):
        return f"a list in brackets, of {_words(wanted.item_type)}"
    if isinstance(wanted, StructType):
        return f"a section with {', '.join(sorted(field.name for field in wanted.fields))}"
    assert isinstance(wanted, IntType), f"no setting is a {wanted}"
    least = f" from {wanted.ge}" if wanted.ge is not None else ""
    most = f" to {wanted.le}" if wanted.le is not None else ""
    return f"a whole number{least}{most}"


def _shown(value: Any) -> str:
    """Format a value about as TOML does, and shorten it."""
    if isinstance(value, Struct):
        value = msgspec.to_builtins(value)
    try:
        text = msgspec.json.encode(value).decode()
    except (TypeError, OverflowError, ValueError, msgspec.MsgspecError):
        text = "this"
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


def _default(field: msgspec.structs.FieldInfo) -> Any:
    return field.default_factory() if field.default_factory is not NODEFAULT else field.default


def _join(place: str, key: str) -> str:
    shown = key if key.isprintable() else repr(key)
    return f"{place}.{shown}" if place else shown
