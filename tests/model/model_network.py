"""The network between the parties of the model, and their clock: nothing moves unless the explorer says so.

A `Process` is one run of one party and its reactor. What it sends becomes an `Item` in `Network.flight`; what it
waits for becomes a `Timer` in `Network.timers`. The explorer delivers items, fires timers, and does the damage.
"""

from __future__ import annotations

import re
from bisect import insort
from collections.abc import Callable
from functools import cache
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone, ConnectionLost, ConnectionRefusedError, TimeoutError
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure
from zope.interface import implementer

from scistream.protocol.messages import Status
from support.memory_network import HOST, ListeningPort, MemoryTransport

DIAL_PATIENCE = 10.0
QUIET = "quiet"
"""The `hold` of an item that waits until nothing else is on its way."""

FINITE, RECURRENT, LONG = "finite", "recurrent", "long"
_RECURRENT = {"_polled", "_send", "_reconnect", "_hung"}
_LONG = {"expired", "hello_timeout"}


@implementer(IDelayedCall)
class Timer:
    """A delayed call of a process."""

    __slots__ = ("args", "function", "kwargs", "label", "network", "number", "process", "when")

    def __init__(self, network: Network, process: Any, when: float, function: Any, args: Any, kwargs: Any) -> None:
        self.network: Network | None = network
        self.process = process
        self.when = when
        self.function = function
        self.args = args
        self.kwargs = kwargs
        self.label = label_of(function)
        self.number = network.another()

    def __lt__(self, other: Timer) -> bool:
        return (self.when, self.number) < (other.when, other.number)

    @property
    def kind(self) -> str:
        """True if it ends something soon, comes again and again, or is the end of a stream's time."""
        if self.label == "_give_up":
            return RECURRENT if isinstance(self.args[0].command, Status) else FINITE
        return RECURRENT if self.label in _RECURRENT else LONG if self.label in _LONG else FINITE

    def active(self) -> bool:
        """IDelayedCall."""
        return self.network is not None

    def cancel(self) -> None:
        """IDelayedCall."""
        assert self.network is not None, "a timer that is not active was cancelled"
        self.network.timers.remove(self)
        self.network = None

    def getTime(self) -> float:
        """IDelayedCall."""
        return self.when


_INPUT = re.compile(r"<function \w+\.(\w+) ")


@cache
def _name_of(function: Any) -> str:
    found = _INPUT.search(function.__name__)  # an input of a machine
    return found[1] if found is not None else str(function.__name__)


def label_of(function: Any) -> str:
    """Return what a timer does, by the name of what it calls."""
    return _name_of(getattr(function, "__func__", function))


class Process:
    """One run of one party; for the code of that party it is the reactor.

    :ivar party: whose run it is.
    :ivar number: which run of that party, from 1.
    :ivar silent: nothing comes in or goes out any more, and nobody is told.
    """

    def __init__(self, network: Network, party: str, number: int) -> None:
        self.network = network
        self.party = party
        self.number = number
        self.alive = True
        self.silent = False
        self.effects = 0
        self.dies_after: int | None = None
        self.nameResolver = self
        self._count = 0

    def another(self) -> int:
        """Return a number that this run has not used before."""
        self._count += 1
        return self._count

    def may(self) -> bool:
        """Return True if effects on the outside still happen: they do not in a party that died during an event."""
        if not self.alive:
            return False
        self.effects += 1
        return self.dies_after is None or self.effects <= self.dies_after

    # -- the reactor

    def seconds(self) -> float:
        """IReactorTime."""
        return self.network.now

    def callLater(self, delay: float, function: Any, *args: Any, **kwargs: Any) -> Timer:
        """IReactorTime."""
        timer = Timer(self.network, self, self.network.now + delay, function, args, kwargs)
        insort(self.network.timers, timer)
        return timer

    def listenTCP(self, port: int, factory: Any, backlog: int = 50, interface: str = "") -> Any:
        """IReactorTCP."""
        assert port not in self.network.listeners, f"two listen on {port}"
        self.network.listeners[port] = (self, factory)
        return ListeningPort(self.network.listeners, port)

    def resolveHostName(self, receiver: Any, name: str, *_: Any, **__: Any) -> Any:
        """IHostnameResolver: every name is that of this host, and looking it up takes a while."""
        self.network.add(Item("lookup", None, None, self, data=receiver, text=name))
        return receiver

    def addReader(self, _reader: Any) -> None:
        """IReactorFDSet: nobody ever connects to a gateway's ports."""

    removeReader = addReader


class Item:
    """A message or event in transit.

    :ivar kind: ``dial`` to a port, a ``line``, the ``close`` of the other end, the loss of the own end (``gone``), or
        the answer to a name's ``lookup``.
    :ivar end: where it arrives, if that is an end of a connection.
    :ivar process: where it arrives.
    :ivar hold: None if it may be delivered at once, `QUIET`, or the time when it comes.
    :ivar repeated: it has been delivered before.
    """

    __slots__ = ("data", "end", "factory", "hold", "kind", "process", "repeated", "sender", "text", "timer")

    def __init__(
        self,
        kind: str,
        end: End | None,
        sender: Process | None,
        process: Process | None,
        data: Any = b"",
        text: Any = "",
    ) -> None:
        self.kind = kind
        self.end = end
        self.sender = sender
        self.process = process
        self.data = data
        self.text = text
        self.factory: Any = None
        self.hold: Any = None
        self.timer: Timer | None = None
        self.repeated = False

    def copy(self) -> Item:
        """Return the same item once more."""
        copied = Item(self.kind, self.end, self.sender, self.process, self.data, self.text)
        copied.repeated = True
        return copied


class Connection:
    """One connection, both ends of it."""

    __slots__ = ("client", "number", "port", "server")

    def __init__(self, number: int, port: int) -> None:
        self.number = number
        self.port = port
        self.client: End
        self.server: End

    @property
    def is_open(self) -> bool:
        """True if either end believes so."""
        return self.client.open or self.server.open


class End(MemoryTransport):
    """The transport of one end."""

    def __init__(self, connection: Connection, process: Process, host: IPv4Address, peer: IPv4Address) -> None:
        super().__init__(host, peer)
        self.connection = connection
        self.process = process
        self.protocol: Any = None
        self.link: Any = None
        self.open = True
        self.closing = False

    @property
    def disconnecting(self) -> bool:
        """ITransport."""
        return self.closing

    @property
    def other(self) -> End:
        """Return the end that this one talks to."""
        return self.connection.server if self is self.connection.client else self.connection.client

    def write(self, data: bytes) -> None:
        """ITransport."""
        process = self.process
        if self.open and not self.closing and process.may():
            network = process.network
            network.on_write(self, data)
            network.add(Item("line", self.other, process, self.other.process, data))

    def loseConnection(self) -> None:
        """ITransport: what was written before still arrives."""
        if self.open and not self.closing and self.process.may():
            self.closing = True
            network = self.process.network
            network.add(Item("close", self.other, self.process, self.other.process, text="closed"))
            network.add(Item("gone", self, None, self.process, text="closed"))

    def abortConnection(self) -> None:
        """ITCPTransport."""
        self.loseConnection()

    def gone(self, why: Exception) -> None:
        """Tell this end that the connection is no more."""
        if self.open:
            self.open = False
            self.process.network.touched.add(self.process.party)
            if self.process.alive:
                self.protocol.connectionLost(Failure(why))


_ADDRESSES: dict[int, IPv4Address] = {}


def _address(port: int) -> IPv4Address:
    if port not in _ADDRESSES:
        _ADDRESSES[port] = IPv4Address("TCP", HOST, port)
    return _ADDRESSES[port]


class Network:
    """Everything in transit, and all timers.

    :ivar touched: the parties whose code was run since this was emptied.
    :ivar rewired: connections were made or have gone since this was set to False.
    :ivar on_write: hears of each line that is sent, before it is on its way.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.touched: set[str] = set()
        self.rewired = True
        self.flight: list[Item] = []
        self.timers: list[Timer] = []
        self.connections: list[Connection] = []
        self.listeners: dict[int, tuple[Process, Any]] = {}
        self.on_write: Callable[[End, bytes], None] = lambda end, data: None
        self._made = 0
        self._count = 0

    def another(self) -> int:
        """Return a number that was not used before."""
        self._count += 1
        return self._count

    # -- what is sent

    def add(self, item: Item) -> None:
        """Put an item on its way, unless its sender or its receiver is cut off."""
        if item.kind != "lookup" and item.kind != "gone" and _cut_off(item):
            return
        self.flight.append(item)

    def dial(self, process: Process, port: int, factory: Any) -> Deferred[Any]:
        """Connect a process to a port."""
        item = Item("dial", None, process, None, text=port)
        item.factory = factory

        def cancelled(_: Any) -> None:
            if item in self.flight:
                self.flight.remove(item)
            if item.timer is not None:
                item.timer.cancel()

        item.data = Deferred(cancelled)
        listener = self.listeners.get(port)
        item.process = listener[0] if listener is not None else None
        if _cut_off(item):
            item.timer = process.callLater(DIAL_PATIENCE, self._hung, item)
        else:
            self.flight.append(item)
        return item.data

    def _hung(self, item: Item) -> None:
        item.timer = None
        item.data.errback(Failure(TimeoutError("no answer")))

    # -- what arrives

    def due(self) -> Item | None:
        """Return what is delivered next if nothing goes wrong, or None if all that is on its way is held up."""
        held = None
        for item in self.flight:
            if item.hold is None:
                return item
            if item.hold is QUIET and held is None:
                held = item
        return held

    def deliver(self, item: Item) -> None:
        """Deliver an item."""
        self.flight.remove(item)
        for process in (item.process, item.sender) if item.kind == "dial" else (item.process,):
            if process is not None:
                self.touched.add(process.party)
        if item.kind == "line":
            end = item.end
            assert end is not None
            if end.open and end.process.alive and not end.process.silent:
                end.protocol.dataReceived(item.data)
        elif item.kind == "dial":
            self._connect(item)
        elif item.kind == "lookup":
            if item.process is not None and item.process.alive:
                item.data.resolutionBegan(None)
                item.data.addressResolved(_address(1))
                item.data.resolutionComplete()
        else:
            assert item.end is not None
            self._drop(item.end)
            item.end.gone(ConnectionDone() if item.text == "closed" else ConnectionLost(item.text))
            self._forget(item.end.connection)

    def _connect(self, item: Item) -> None:
        client, port, factory = item.sender, item.text, item.factory
        assert client is not None
        if not client.alive:
            return
        listener = self.listeners.get(port)
        if listener is None:
            item.data.errback(Failure(ConnectionRefusedError("nobody listens there")))
            return
        process, server_factory = listener
        self._made += 1
        connection = Connection(self._made, port)
        near, far = _address(40000 + self._made), _address(port)
        connection.client = End(connection, client, near, far)
        connection.server = End(connection, process, far, near)
        self.connections.append(connection)
        self.rewired = True
        for end, made_by, address in ((connection.server, server_factory, near), (connection.client, factory, far)):
            end.protocol = made_by.buildProtocol(address)
            end.link = getattr(end.protocol, "_protocol", end.protocol)  # behind that of a ClientService
        for end in (connection.server, connection.client):
            end.protocol.makeConnection(end)
        item.data.callback(connection.client.protocol)

    def _drop(self, end: End) -> None:
        """Drop what is on its way to an end."""
        self.flight = [item for item in self.flight if item.end is not end]

    def _forget(self, connection: Connection) -> None:
        if not connection.is_open and connection in self.connections:
            self.connections.remove(connection)
            self.rewired = True

    # -- time

    def fire(self, timer: Timer) -> None:
        """Fire a timer, at its time or later."""
        self.timers.remove(timer)
        timer.network = None
        if timer.process is not None:
            self.touched.add(timer.process.party)
        self.now = max(self.now, timer.when)
        timer.function(*timer.args, **timer.kwargs)

    def lift(self) -> None:
        """Put what was held up until now on its way again."""
        for item in self.flight:
            if isinstance(item.hold, float) and item.hold <= self.now:
                item.hold = None

    # -- damage

    def lose(self, item: Item) -> None:
        """Lose an item. An attempt to connect fails; a close and a lookup cannot be lost."""
        self.flight.remove(item)
        if item.kind == "dial":
            assert item.sender is not None
            self.touched.add(item.sender.party)
            item.data.errback(Failure(ConnectionRefusedError("the network is broken")))

    def break_(self, connection: Connection) -> None:
        """Break a connection: both ends lose it now, and all that is on its way."""
        for end in (connection.server, connection.client):
            self._drop(end)
        for end in (connection.server, connection.client):
            end.gone(ConnectionLost("the network was broken"))
        self._forget(connection)

    def break_half(self, connection: Connection) -> None:
        """Who dialled loses it now; the other end hears of it last of all, and of what was on its way before that."""
        server, client = connection.server, connection.client
        self._drop(client)
        for item in self.flight:
            if item.end is server and item.hold is None:
                item.hold = QUIET
        client.gone(ConnectionLost("the network was broken"))
        gone = Item("gone", server, None, server.process, text="the network was broken")
        gone.hold = QUIET
        self.flight.append(gone)

    def kill(self, process: Process, *, flush: bool) -> None:
        """Kill a process. What it has sent is lost, or with `flush` still arrives; its peers lose their links."""
        process.alive = False
        self.touched.add(process.party)
        self.timers = [timer for timer in self.timers if timer.process is not process]
        for port in [port for port, (listens, _) in self.listeners.items() if listens is process]:
            del self.listeners[port]
        self.flight = [
            item
            for item in self.flight
            if not (
                (item.process is process and item.kind != "dial")
                or (item.sender is process and (not flush or item.kind == "dial"))
            )
        ]
        for connection in list(self.connections):
            for end in (connection.client, connection.server):
                if end.process is process:
                    end.open = False
                    if end.other.open and not process.silent:
                        self.add(Item("gone", end.other, None, end.other.process, text="the other end died"))
            self._forget(connection)

    def silence(self, process: Process) -> None:
        """From now on nothing comes in or goes out, and nobody is told."""
        process.silent = True
        self.touched.add(process.party)
        for item in list(self.flight):
            if item.kind == "dial" and (item.sender is process or item.process is process):
                self.flight.remove(item)
                assert item.sender is not None
                item.timer = item.sender.callLater(DIAL_PATIENCE, self._hung, item)
            elif item.kind in ("line", "close") and _cut_off(item):
                self.flight.remove(item)


def _cut_off(item: Item) -> bool:
    return any(one is not None and one.silent for one in (item.sender, item.process))
