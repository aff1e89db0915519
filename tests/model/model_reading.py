"""The parts of a value that matter to the model, in a form that can be compared.

It covers records, what the states of machines share, the data of states, and messages. It is derived from their types,
so that a field that is added to one of them counts at once.

What does not matter: floats, which are times and rates; the numbers of commands; events that are told of later;
sentences for people; the effects of a machine. A caller counts as one who waits: who that is depends on other parties,
and `callers_in` finds them.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Iterator
from functools import cache
from operator import attrgetter
from typing import Any

import msgspec

from scistream.protocol.errors import StreamError
from scistream.state_machines import Caller

LEFT_OUT = frozenset({"seq", "msg", "effects", "events", "events_dropped"})
"""Names of fields that do not matter, wherever they are."""


class _Readers(dict[type, Callable[[Any], Any]]):
    """How values of a type are read, found out when the first of them is met."""

    def __missing__(self, kind: type) -> Callable[[Any], Any]:
        found = self[kind] = _reader_of(kind)
        return found


_readers = _Readers()
_known: dict[int, tuple[Any, int]] = {}
MOST_KNOWN = 100_000


def read(value: Any) -> Any:
    """Return what matters of a value.

    :raises TypeError: if it is, or has in it, something of a kind that nothing is known of.
    """
    return _readers[type(value)](value)


@cache
def fields_of(kind: type) -> tuple[str, ...]:
    """Return the names of all fields of a class that matter; none if it has no fields."""
    names: tuple[str, ...] = ()
    if issubclass(kind, msgspec.Struct):
        names = kind.__struct_fields__
    elif dataclasses.is_dataclass(kind):
        names = tuple(one.name for one in dataclasses.fields(kind))
    return tuple(name for name in names if name not in LEFT_OUT)


def _reader_of(kind: type) -> Callable[[Any], Any]:
    if issubclass(kind, float):
        return lambda value: None
    if kind is type(None) or issubclass(kind, str | int | bytes | enum.Enum):
        return lambda value: value
    if issubclass(kind, Caller):
        return lambda value: "a caller"
    if issubclass(kind, StreamError):
        return lambda value: value.code
    if issubclass(kind, list | tuple):
        return lambda value: tuple([_readers[type(one)](one) for one in value])
    if issubclass(kind, dict):
        return lambda value: tuple([(read(key), read(one)) for key, one in value.items()])
    if issubclass(kind, set | frozenset):
        return lambda value: tuple(sorted([read(one) for one in value], key=repr))
    if issubclass(kind, msgspec.Struct) or dataclasses.is_dataclass(kind):
        reader = _fields_reader(kind)
        if issubclass(kind, msgspec.Struct) and kind.__struct_config__.frozen:
            return lambda value: _remembered(value, reader)
        return reader
    raise TypeError(f"it is not known what matters of a {kind.__name__}: say so here, or leave its field out")


def _fields_reader(kind: type) -> Callable[[Any], Any]:
    names = fields_of(kind)
    if len(names) < 2:
        return lambda value: (kind.__name__, *[read(getattr(value, name)) for name in names])
    fields = attrgetter(*names)
    return lambda value: (kind.__name__, *[_readers[type(one)](one) for one in fields(value)])


def _remembered(value: Any, reader: Callable[[Any], Any]) -> int:
    """Read a value that never changes, once."""
    known = _known.get(id(value))
    if known is not None and known[0] is value:
        return known[1]
    if len(_known) > MOST_KNOWN:
        _known.clear()
    found = hash(reader(value))
    _known[id(value)] = (value, found)
    return found


def callers_in(value: Any) -> Iterator[Caller]:
    """Yield the callers in the data of a state, in their order."""
    if isinstance(value, Caller):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from callers_in(one)
    elif dataclasses.is_dataclass(value):
        for name in fields_of(type(value)):
            yield from callers_in(getattr(value, name))
