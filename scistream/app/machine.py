"""The state machines of ProdApp and ConsApp, which application controllers run. They do no input or output.

ProdApp:

=================== =================== =========
state               input               next
=================== =================== =========
Idle                start               Greeting
Greeting            RESP                Serving
Greeting, Serving   done, ERROR         Done
any                 anything else       same
=================== =================== =========

ConsApp:

============================== =================== =========
state                          input               next
============================== =================== =========
Idle                           start               Greeting
Greeting                       RESP                Waiting
Greeting, Waiting              StartConn           Connected
Greeting, Waiting, Connected   done, ERROR         Done
any                            anything else       same
============================== =================== =========
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from automat import TypeMachineBuilder

from scistream.protocol.errors import StreamError
from scistream.state_machines import build, on


class Effects(Protocol):
    """The actions that the machines trigger. No effect raises."""

    def say_hello(self) -> None:
        """Say Hello until the S2CS answers, and call the input `welcomed` or `failed`."""

    def serve(self) -> None:
        """Start the program of ProdApp, since the S2CS knows its listeners."""

    def connect(self, listeners: list[str]) -> None:
        """Start the program of ConsApp, which connects to these listeners, one for each channel."""

    def finish(self, error: StreamError | None) -> None:
        """End the application, with the error if the stream has failed."""


class Application(Protocol):
    """The inputs of both machines. An input returns nothing, and raises in no state."""

    def start(self) -> None:
        """Begin to join the stream."""

    def welcomed(self) -> None:
        """Take a RESP to Hello."""

    def start_conn(self, listeners: list[str]) -> None:
        """Take a StartConn. A repeated one changes nothing."""

    def failed(self, error: StreamError) -> None:
        """Take an ERROR to Hello, or the news that the stream has ended."""

    def done(self) -> None:
        """Note that the program has ended."""


@dataclass
class Core:
    """The data that all states of a machine share."""

    effects: Effects
    state: str = "Idle"
    error: StreamError | None = None
    listeners: list[str] = field(default_factory=list)


def _say_hello(app: Application, core: Core) -> None:
    core.effects.say_hello()


def _serve(app: Application, core: Core) -> None:
    core.effects.serve()


def _connect(app: Application, core: Core, listeners: list[str]) -> None:
    core.listeners = list(listeners)
    core.effects.connect(core.listeners)


def _fail(app: Application, core: Core, error: StreamError) -> None:
    core.error = error
    core.effects.finish(error)


def _finish(app: Application, core: Core) -> None:
    core.effects.finish(None)


INPUTS = (
    Application.start,
    Application.welcomed,
    Application.start_conn,
    Application.failed,
    Application.done,
)

_prod = TypeMachineBuilder(Application, Core)

ProdIdle = _prod.state("Idle")
ProdGreeting = _prod.state("Greeting")
Serving = _prod.state("Serving")
ProdDone = _prod.state("Done")

PROD_STATES = (ProdIdle, ProdGreeting, Serving, ProdDone)

_prod_machine = build(
    _prod,
    PROD_STATES,
    [
        on(ProdIdle, Application.start, ProdGreeting, _say_hello),
        on(ProdGreeting, Application.welcomed, Serving, _serve),
        on((ProdGreeting, Serving), Application.failed, ProdDone, _fail),
        on((ProdGreeting, Serving), Application.done, ProdDone, _finish),
    ],
    ignore_elsewhere=INPUTS,
)

_cons = TypeMachineBuilder(Application, Core)

ConsIdle = _cons.state("Idle")
ConsGreeting = _cons.state("Greeting")
Waiting = _cons.state("Waiting")
Connected = _cons.state("Connected")
ConsDone = _cons.state("Done")

CONS_STATES = (ConsIdle, ConsGreeting, Waiting, Connected, ConsDone)

_cons_machine = build(
    _cons,
    CONS_STATES,
    [
        on(ConsIdle, Application.start, ConsGreeting, _say_hello),
        on(ConsGreeting, Application.welcomed, Waiting),
        on((ConsGreeting, Waiting), Application.start_conn, Connected, _connect),
        on((ConsGreeting, Waiting, Connected), Application.failed, ConsDone, _fail),
        on((ConsGreeting, Waiting, Connected), Application.done, ConsDone, _finish),
    ],
    ignore_elsewhere=INPUTS,
)


def new_producer(core: Core) -> Application:
    """Make the machine of a ProdApp."""
    return _prod_machine(core)


def new_consumer(core: Core) -> Application:
    """Make the machine of a ConsApp."""
    return _cons_machine(core)
