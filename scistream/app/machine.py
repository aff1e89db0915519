"""The machines of ProdApp and ConsApp, as an application controller runs them. No I/O in them.

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
from typing import Any, Protocol

from automat import TypeMachineBuilder

from scistream.wire.errors import StreamError


class Effects(Protocol):
    """What the machines want done. None of these raises."""

    def say_hello(self) -> None:
        """Say Hello until it is answered: then `welcomed` or `failed`."""

    def serve(self) -> None:
        """ProdApp is known to the S2CS: its program may go on."""

    def connect(self, listeners: list[str]) -> None:
        """ConsApp may connect to these, one a channel."""

    def finish(self, error: StreamError | None) -> None:
        """It is over; with the error if it failed."""


class Application(Protocol):
    """The inputs of both machines. None of them returns anything; none raises in any state."""

    def start(self) -> None:
        """The application is there."""

    def welcomed(self) -> None:
        """RESP to Hello."""

    def start_conn(self, listeners: list[str]) -> None:
        """StartConn; a repeated one is answered like the first and changes nothing."""

    def failed(self, error: StreamError) -> None:
        """An ERROR to Hello, or the news that the stream has ended."""

    def done(self) -> None:
        """The program has ended."""


@dataclass
class Core:
    """What the states share."""

    effects: Effects
    error: StreamError | None = None
    listeners: list[str] = field(default_factory=list)


def _say_hello(app: Application, core: Core) -> None:
    core.effects.say_hello()


def _fail(app: Application, core: Core, error: StreamError) -> None:
    core.error = error
    core.effects.finish(error)


def _finish(app: Application, core: Core) -> None:
    core.effects.finish(None)


def _nothing_changes(builder: TypeMachineBuilder[Application, Core], states: Any, handled: dict[Any, Any]) -> None:
    for method in (
        Application.start,
        Application.welcomed,
        Application.start_conn,
        Application.failed,
        Application.done,
    ):
        for state in states:
            if state not in handled[method]:
                state.upon(method).loop().returns(None)


_prod = TypeMachineBuilder(Application, Core)

ProdIdle = _prod.state("Idle")
ProdGreeting = _prod.state("Greeting")
Serving = _prod.state("Serving")
ProdDone = _prod.state("Done")
PROD_STATES = (ProdIdle, ProdGreeting, Serving, ProdDone)

ProdIdle.upon(Application.start).to(ProdGreeting)(_say_hello)


@ProdGreeting.upon(Application.welcomed).to(Serving)
def _serve(app: Application, core: Core) -> None:
    core.effects.serve()


for _state in (ProdGreeting, Serving):
    _state.upon(Application.failed).to(ProdDone)(_fail)
    _state.upon(Application.done).to(ProdDone)(_finish)

_nothing_changes(
    _prod,
    PROD_STATES,
    {
        Application.start: (ProdIdle,),
        Application.welcomed: (ProdGreeting,),
        Application.start_conn: (),
        Application.failed: (ProdGreeting, Serving),
        Application.done: (ProdGreeting, Serving),
    },
)
_prod_machine = _prod.build()

_cons = TypeMachineBuilder(Application, Core)

ConsIdle = _cons.state("Idle")
ConsGreeting = _cons.state("Greeting")
Waiting = _cons.state("Waiting")
Connected = _cons.state("Connected")
ConsDone = _cons.state("Done")
CONS_STATES = (ConsIdle, ConsGreeting, Waiting, Connected, ConsDone)

ConsIdle.upon(Application.start).to(ConsGreeting)(_say_hello)
ConsGreeting.upon(Application.welcomed).to(Waiting).returns(None)


def _connect(app: Application, core: Core, listeners: list[str]) -> None:
    core.listeners = list(listeners)
    core.effects.connect(core.listeners)


for _waiting in (ConsGreeting, Waiting):
    _waiting.upon(Application.start_conn).to(Connected)(_connect)
for _waiting in (ConsGreeting, Waiting, Connected):
    _waiting.upon(Application.failed).to(ConsDone)(_fail)
    _waiting.upon(Application.done).to(ConsDone)(_finish)

_nothing_changes(
    _cons,
    CONS_STATES,
    {
        Application.start: (ConsIdle,),
        Application.welcomed: (ConsGreeting,),
        Application.start_conn: (ConsGreeting, Waiting),
        Application.failed: (ConsGreeting, Waiting, Connected),
        Application.done: (ConsGreeting, Waiting, Connected),
    },
)
_cons_machine = _cons.build()


def new_producer(core: Core) -> Application:
    """The machine of a ProdApp."""
    return _prod_machine(core)


def new_consumer(core: Core) -> Application:
    """The machine of a ConsApp."""
    return _cons_machine(core)
