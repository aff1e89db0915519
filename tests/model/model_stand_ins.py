"""Test doubles for sockets, keys, random numbers and logs, which make a run of the model fast and reproducible.

`installed` puts the stand-ins into the project's modules and takes them out again. Everything else that runs in the
model is the project's own code.
"""

from __future__ import annotations

import random
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from automat._core import Automaton
from model_network import Process
from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger, LogLevel

import scistream.links.dialer
import scistream.links.tls_links
import scistream.protocol.messages
import scistream.s2cs.service
import scistream.s2ds.service
import scistream.s2ds.settings
import scistream.s2ds.stream
import scistream.s2uc.stream
from scistream import resources
from scistream.links.link import Link
from scistream.protocol.address import Address, parse_network
from scistream.protocol.errors import StreamError
from scistream.protocol.messages import CONS, Role, StreamKey
from scistream.s2cs.record import Record
from scistream.s2cs.store.database import Store
from support.memory_network import MemoryPorts


class Now:
    """Whose code is running: stand-ins that are made by the code itself belong to that process."""

    process: Process
    open_store: Callable[[Path], Store]
    noted: Callable[[Any, dict[str, Any]], None]


class ModelEndpoint:
    """The endpoint of a client, in place of a `HostnameEndpoint`."""

    def __init__(self, process: Process, _host: str, port: int, **_: Any) -> None:
        self._process = process
        self._port = port

    def connect(self, factory: Any) -> Deferred[Any]:
        """IStreamClientEndpoint."""
        return self._process.network.dial(self._process, self._port, factory)


class ModelStore(Store):
    """The real store, of one process: what that does after its death is not written."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._db.execute("PRAGMA synchronous = OFF")  # the machine does not die here, only processes do
        self.process = Now.process
        self.id = f"{sum(self.process.party.encode()):032x}"  # the same one in each run
        self.written: dict[Any, tuple[str, int]] = {}
        """Of each stream by its key, and of each early release by its owner and key."""

    def _sync(self, how: str) -> None:
        """Nothing is to be safe against the death of the machine."""

    def save(self, record: Record) -> None:
        if self.process.may():
            super().save(record)
            self.written[record.key] = (record.state, record.generation)

    def load(self, *, live: bool = False) -> list[Record]:
        records = super().load()
        self.written = {record.key: (record.state, record.generation) for record in records}
        for owner, uid, role in self._db.execute("SELECT owner, uid, role FROM early_release"):
            self.written[owner, uid, role] = ("Released", 0)
        return [record for record in records if not live or record.state != "Released"]

    def note_early_release(self, owner: str, key: StreamKey, now: float, most: int) -> None:
        if self.process.may():
            super().note_early_release(owner, key, now, most)
            self.written[owner, *key] = ("Released", 0)

    def empty(self) -> None:
        """Forget all, for another run."""
        if not self.written:
            return
        self._db.execute("DELETE FROM stream")
        self._db.execute("DELETE FROM early_release")
        self.written = {}


class ModelLock:
    """No two processes of a party ever live at the same time."""

    def __init__(self, _store: Path) -> None:
        """Taken."""

    def note_holder(self) -> None:
        """Do nothing: the holder is known."""

    def release(self) -> None:
        """Given back."""


class ModelElements:
    """Remembers what is open and armed, and carries nothing."""

    def __init__(self, _process: Process, *_: Any, **__: Any) -> None:
        self.streams: dict[StreamKey, dict[int, ModelArming | None]] = {}
        self.count = 1
        self.restarts = 0

    def ready_count(self) -> int:
        return self.count

    def most_connections(self) -> int:
        return 0

    def start(self) -> None:
        """Nothing to start."""

    def open(self, uid: str, role: Role, _rate: float, slots: Mapping[int, int], _owner: str) -> None:
        self.streams.setdefault((uid, role), dict.fromkeys(slots))

    def arm(
        self,
        uid: str,
        role: Role,
        targets: Mapping[int, Address],
        credentials: ModelContext,
        *_: Any,
        wan_dialer: Role,
        wan_targets: Mapping[int, Address],
    ) -> Deferred[None]:
        channels = self.streams[uid, role]
        for channel in channels:
            gateway = (targets if role == CONS else wan_targets).get(channel)
            assert (gateway is not None) == (role == wan_dialer), "the side that dials knows the others, and only that"
            channels[channel] = ModelArming(targets.get(channel), gateway, credentials)
        return succeed(None)

    def close(self, uid: str, role: Role) -> Deferred[list[Any]]:
        self.streams.pop((uid, role), None)
        return succeed([])

    def has_room(self, _uid: str, _role: Role, _channel: int, *, wan: bool) -> bool:
        return True

    def figures(self, _uid: str, _role: Role) -> list[Any]:
        return []

    def held(self, _uid: str, _role: Role, _channel: int) -> int:
        return 0


@dataclass(frozen=True)
class ModelContext:
    """The credentials of a WAN connection: who signed them."""

    authority: str


@dataclass(frozen=True)
class ModelArming:
    """Where the connections of a channel go, and under which credentials.

    :ivar gateway: that of the other side, if this gateway dials it.
    """

    target: Address | None
    gateway: Address | None
    context: ModelContext


class ModelSecret:
    """The key of a stream at a gateway: a number that was never used before."""

    def __init__(self) -> None:
        process = Now.process
        self.csr = f"request {process.party} {process.number}.{process.another()}\n"

    def credentials(self, data_conn_key: str, _uid: str, _role: Role) -> ModelContext:
        authority, *fitting = data_conn_key.splitlines(keepends=True)
        if self.csr not in fitting:
            raise StreamError("bad-message", "data_conn_key: none of its certificates is for the key of this gateway.")
        return ModelContext(authority)


def model_credentials(_uid: str, _generation: int, _left: float, csr: Mapping[Role, str]) -> dict[Role, str]:
    """Every authority is another one."""
    process = Now.process
    authority = f"authority {process.number}.{process.another()}\n"
    return {role: authority + bundle for role, bundle in csr.items()}


def _boot(_bytes: int = 16) -> str:
    party = {"producer's S2DS": 1, "consumer's S2DS": 2}.get(Now.process.party, sum(Now.process.party.encode()))
    return f"{party:016x}{Now.process.number:016x}"


def _number_link(self: Any, *args: Any, **kwargs: Any) -> None:
    _init_link(self, *args, **kwargs)
    self._number = Now.process.network.another()


_init_link = Link.__init__


_parse = cache(Address.parse)
_parse_network = cache(parse_network)
_memory = cache(resources.memory)
_tcp_memory = cache(resources.tcp_memory)
_processors = cache(resources.processors)
_searched = Automaton.outputForInput


def _looked_up(self: Any, state: Any, symbol: Any) -> Any:
    """Automat's search through a machine's table, remembered."""
    known = self.__dict__.setdefault("_known", {})
    key = (id(state), symbol)
    found = known.get(key)
    if found is None:
        found = known[key] = _searched(self, state, symbol)
    return found


def _emit(self: Logger, level: Any, format: str | None = None, **fields: Any) -> None:
    if level is LogLevel.critical or "log_failure" in fields or "state" in fields:
        Now.noted(level, fields)


def _app_key() -> str:
    return f"{Now.process.another():043d}"


@contextmanager
def installed() -> Iterator[None]:
    """Put the stand-ins in place for as long as this lasts."""
    replaced: list[tuple[Any, str, Any]] = [
        (scistream.links.tls_links, "HostnameEndpoint", ModelEndpoint),
        (scistream.s2cs.service, "Store", lambda path: Now.open_store(path)),
        (scistream.s2cs.service, "StoreLock", ModelLock),
        (scistream.s2cs.service, "resolve_path", lambda file, name: file.parent / name),
        (scistream.s2ds.service, "ListenPorts", MemoryPorts),
        (scistream.s2ds.service, "Elements", ModelElements),
        (scistream.s2ds.service, "secrets", types.SimpleNamespace(token_hex=_boot)),
        (scistream.s2ds.settings, "memory", _memory),
        (scistream.s2ds.settings, "tcp_memory", _tcp_memory),
        (scistream.s2ds.settings, "processors", _processors),
        (scistream.s2ds.service, "raise_descriptor_limit", lambda: None),
        (scistream.s2ds.stream, "StreamSecret", ModelSecret),
        (scistream.s2uc.stream, "issue_credentials", model_credentials),
        (scistream.s2uc.stream, "new_app_key", _app_key),
        (scistream.links.dialer, "random", types.SimpleNamespace(uniform=lambda low, high: high)),
        (Link, "__init__", _number_link),
        (Link, "__hash__", lambda self: self._number),
        (Logger, "emit", _emit),
        (Automaton, "outputForInput", _looked_up),
        (Address, "parse", staticmethod(_parse)),
        (scistream.protocol.messages, "parse_network", _parse_network),
    ]
    before = [(where, name, where.__dict__.get(name, _ABSENT)) for where, name, _ in replaced]
    state = random.getstate()
    try:
        for where, name, what in replaced:
            setattr(where, name, what)
        yield
    finally:
        random.setstate(state)
        for where, name, what in before:
            if what is _ABSENT:
                delattr(where, name)
            else:
                setattr(where, name, what)


_ABSENT = object()
