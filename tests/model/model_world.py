"""The parties of the model, and the order in which things happen when nothing goes wrong.

A `World` is one run: two facilities, a user, two applications, all of them the project's own code, on a network of
its own. `World.next` says what happens next, `World.do` lets it happen; what goes wrong is done to it from outside,
between the two.
"""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_fingerprint import Painter, essence
from model_network import HOST, LONG, Connection, End, Network, Process, Timer
from model_stand_ins import ModelStore, Now
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from scistream.app.controller import Controller
from scistream.protocol.address import Address
from scistream.protocol.errors import StreamError
from scistream.protocol.join_string import Join
from scistream.protocol.messages import CONS, PROD, Role
from scistream.s2cs.service import ControlServer
from scistream.s2cs.settings import GatewaySettings, S2CSConfig
from scistream.s2ds.service import DataServer
from scistream.s2ds.settings import S2DSConfig, WanSettings
from scistream.s2uc.client import Client, Stream

UID = "00000000-0000-4000-8000-000000000001"
RATE = 400.0
CAPACITY = 1000.0
EXPIRES = 900.0
HELLO_TIMEOUT = 600.0
ROUND = 15.0
"""Seconds in which everything that comes again and again has come once."""
LONG_ROUND = 60.0
"""Seconds in which everything that is tried again has been tried again, and everything that is late has come."""

USER = "user"
APPS: dict[Role, str] = {PROD: "ProdApp", CONS: "ConsApp"}


@dataclass(frozen=True)
class Scenario:
    """What the people in a run do.

    :param script: their steps, in order; each as soon as it makes sense, or never.
    :param gateways: how many S2DS each facility has.
    :param wan_dialer: the side whose gateways dial the others; None leaves it to the user's client.
    """

    name: str
    script: tuple[str, ...]
    gateways: int = 1
    num_conn: int = 1
    wan_dialer: Role | None = None


SCENARIOS = {
    one.name: one
    for one in (
        Scenario("life", ("ask", "consumer", "producer", "release")),
        Scenario("new targets", ("ask", "producer", "consumer", "other producer")),
        Scenario("user returns", ("ask", "producer", "leave", "return", "consumer", "release")),
        Scenario("pool", ("ask", "consumer", "producer", "release"), gateways=2, num_conn=2),
        Scenario("producer dials", ("ask", "consumer", "producer", "other producer", "release"), wan_dialer=PROD),
    )
}


class Facility:
    """An S2CS and its S2DS, by their names, ports and settings; all of it stays over restarts."""

    def __init__(self, role: Role, port: int, gateways: int) -> None:
        side = "producer's" if role == PROD else "consumer's"
        self.role = role
        self.control = f"{side} S2CS"
        self.gateways = {f"{side} S2DS" + (f" {n + 1}" if n else ""): port + 1 + n for n in range(gateways)}
        self.port = port
        self.folder = Path(f"/{role}")
        self.control_settings = S2CSConfig(
            listen=f"{HOST}:{port}",
            gateways=[GatewaySettings(name=name, address=f"{HOST}:{at}") for name, at in self.gateways.items()],
            insecure=True,
            state=f"{role}.sqlite",
            audit="none",
        )
        # A gateway has to look those that it dials up by name: so its arming takes a while.
        wan = WanSettings(advertise="gateway.example")
        self.gateway_settings = {
            name: S2DSConfig(
                listen=f"{HOST}:{at}",
                insecure=True,
                ports=f"{at * 10}-{at * 10 + 2}",
                capacity=f"{CAPACITY:g}Mbit",
                wan=wan,
            )
            for name, at in self.gateways.items()
        }


_facilities: dict[int, dict[Role, Facility]] = {}


def facilities(gateways: int) -> dict[Role, Facility]:
    """Two facilities with so many gateways each."""
    if gateways not in _facilities:
        _facilities[gateways] = {PROD: Facility(PROD, 5000, gateways), CONS: Facility(CONS, 6000, gateways)}
    return _facilities[gateways]


class Stores:
    """The files of the stores: one folder for all runs of a process, emptied for each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[str, ModelStore] = {}
        self._spare: list[ModelStore] = []

    def begin(self) -> None:
        """Another run begins."""
        for store in self._spare:
            store.close()
        self._spare = []
        for store in self._open.values():
            store.empty()
        self._used: set[str] = set()

    def open(self, path: Path) -> ModelStore:
        """Open the store of a server that starts: the first in a run finds an empty one."""
        name = path.name
        if name in self._used:
            self._spare.append(self._open[name])
            self._open[name] = ModelStore(self._folder / name)
        elif name not in self._open:
            self._open[name] = ModelStore(self._folder / name)
        self._used.add(name)
        store = self._open[name]
        store.process = Now.process
        return store

    def close(self) -> None:
        """No run begins any more."""
        for store in (*self._spare, *self._open.values()):
            store.close()


@contextmanager
def folder_for_stores() -> Iterator[Path]:
    """Make a folder for as long as this lasts, in memory where the system allows it."""
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shm if shm.is_dir() else None) as folder:
        yield Path(folder)


@contextmanager
def stores() -> Iterator[Stores]:
    """Files for the stores."""
    with folder_for_stores() as folder, closing(Stores(folder)) as files:
        yield files


@dataclass
class User:
    """One run of the user's client.

    :ivar attaching: it has not yet learnt where the stream is.
    :ivar closed: its links are closed, and it has ended.
    :ivar gone: it has ended without having released the stream.
    """

    process: Process
    client: Client
    stream: Stream
    attaching: bool = False
    closed: bool = False
    gone: bool = False

    @property
    def core(self) -> Any:
        """What the client's machine knows."""
        return self.stream._effects.core


class World:
    """One run.

    :param files: where the stores are.
    :param crashes: servers may die at any moment, so what they say must be in their stores before they say it.
    :ivar script: what the people have still to do.
    :ivar at_rest: nothing happens any more before a stream's time is over, or people act.
    :ivar has_released: the user has asked for the release.
    :ivar broken: what must not happen and did.
    :ivar news: states that machines entered since this was emptied.
    """

    def __init__(self, scenario: Scenario, files: Stores, *, crashes: bool = False) -> None:
        files.begin()
        self.crashes = crashes
        Now.open_store = files.open
        Now.noted = self._noted
        self.scenario = scenario
        self.network = Network()
        self.network.on_write = self._on_write
        self.facilities = facilities(scenario.gateways)
        self.processes: dict[str, Process] = {}
        self.controls: dict[str, ControlServer] = {}
        self.gateways: dict[str, DataServer] = {}
        self.applications: dict[str, Controller] = {}
        self.user: User | None = None
        self.joins: dict[Role, str] = {}
        self.app_ports: dict[Role, int] = {PROD: 7000, CONS: 0}
        self.script = list(scenario.script)
        self.has_released = False
        self.at_rest = False
        self.broken: list[str] = []
        self.news: list[str] = []
        self.said_released: set[tuple[Process, Role]] = set()
        self.painter = Painter(self)
        self._calm: tuple[Any, float] = (None, 0.0)
        for facility in self.facilities.values():
            for name in facility.gateways:
                self.start(name)
        for facility in self.facilities.values():
            self.start(facility.control)

    # -- parties come and go

    def process(self, party: str) -> Process:
        """Begin a new run of a party."""
        earlier = self.processes.get(party)
        process = Process(self.network, party, earlier.number + 1 if earlier is not None else 1)
        self.processes[party] = process
        Now.process = process
        return process

    def start(self, party: str) -> None:
        """Start a party, for the first time or again."""
        self.network.touched.add(party)
        for facility in self.facilities.values():
            if party == facility.control:
                process = self.process(party)
                control = ControlServer(
                    process, facility.control_settings, facility.folder / "s2cs.toml", wall=process.seconds
                )
                self.controls[party] = control
                control.startService()
            elif party in facility.gateways:
                process = self.process(party)
                settings = facility.gateway_settings[party]
                gateway = self.gateways[party] = DataServer(process, settings, facility.folder / "s2ds.toml")
                gateway.startService()
        for role, name in APPS.items():
            if party == name:
                self._start_application(role)

    def _start_application(self, role: Role) -> None:
        process = self.process(APPS[role])
        listeners = [Address(HOST, self.app_ports[PROD])] if role == PROD else []
        join = Join.parse(self.joins[role])
        controller = Controller(process, join, listeners, _Program(), _ignore)
        self.applications[APPS[role]] = controller
        controller.run().addErrback(lambda failure: failure.trap(StreamError))

    def kill(self, party: str, comeback: Any, *, flush: bool) -> None:
        """Let a party die, and come back after so many seconds, or never (None)."""
        process = self.processes[party]
        self.network.kill(process, flush=flush)
        if party == USER:
            self.user = None
        for kept in (self.controls, self.gateways, self.applications):
            kept.pop(party, None)
        if comeback is not None:
            timer = Timer(self.network, None, self.network.now + comeback, self._come_back, (party,), {})
            self.network.timers.append(timer)
            self.network.timers.sort()

    def _come_back(self, party: str) -> None:
        if party == USER:
            self._return()
        else:
            self.start(party)

    def is_there(self, party: str) -> bool:
        """Return True if a party runs and can be reached."""
        process = self.processes.get(party)
        return process is not None and process.alive and not process.silent

    # -- what people do

    def _ask(self) -> None:
        process = self.process(USER)
        client = Client(insecure=True, reactor=process, remember=False)
        asked = client.request(
            **self._sides(),
            uid=UID,
            rate=RATE,
            num_conn=self.scenario.num_conn,
            expires=EXPIRES,
            hello_timeout=HELLO_TIMEOUT,
            wan_dialer=self.scenario.wan_dialer,
        )
        self.user = User(process, client, asked.stream)
        asked.deferred.addCallbacks(self._reserved, self._user_failed)

    def _sides(self) -> dict[str, str]:
        return {
            "prod": f"{HOST}:{self.facilities[PROD].port}",
            "cons": f"{HOST}:{self.facilities[CONS].port}",
        }

    def _reserved(self, stream: Stream) -> None:
        self.joins = stream.join

    def _user_failed(self, failure: Failure) -> None:
        failure.trap(StreamError)

    def _return(self) -> None:
        process = self.process(USER)
        self.network.touched.add(USER)
        client = Client(insecure=True, reactor=process, remember=False)
        self.user = user = User(process, client, client.remembered(UID, **self._sides()), attaching=True)
        attached: Deferred[None] = user.stream.attach().deferred

        def done(_: Any) -> None:
            user.attaching = False

        def failed(failure: Failure) -> None:
            failure.trap(StreamError)
            if user.core.state != "Released":  # it could not be learnt where the stream is: she goes away again
                user.closed = user.gone = True
                client.close()

        attached.addErrback(failed).addCallback(done)

    def _release(self) -> None:
        assert self.user is not None
        Now.process = self.user.process
        self.has_released = True
        self.user.stream.release().deferred.addErrback(self._user_failed)

    def _close(self) -> None:
        assert self.user is not None
        Now.process = self.user.process
        self.network.touched.add(USER)
        self.user.closed = True
        self.user.client.close()

    def can(self, step: str) -> bool:
        """Return True if a step of the script makes sense now."""
        user = self.user
        state = user.core.state if user is not None and not user.attaching and not user.closed else None
        if step == "ask":
            return True
        if step in ("consumer", "producer"):
            return bool(self.joins) and (user is None or state not in (None, "Releasing", "Released"))
        if step == "other producer":
            return state == "Streaming" and self._all_connected()
        if step == "leave":
            return state == "Reserved"
        if step == "return":
            return self.user is None and USER in self.processes
        return self.at_rest and state in ("Reserving", "Reserved", "Provisioning", "Updating", "Streaming")

    def _all_connected(self) -> bool:
        consumer = self.applications.get(APPS[CONS])
        return consumer is not None and consumer._program is not None

    def act(self, step: str) -> None:
        """Take a step of the script."""
        self.network.rewired = True
        if step == "ask":
            self._ask()
        elif step in ("consumer", "producer"):
            self._start_application(CONS if step == "consumer" else PROD)
        elif step == "other producer":
            if self.processes[APPS[PROD]].alive:
                self.kill(APPS[PROD], None, flush=True)
            self.app_ports[PROD] += 1
            self._start_application(PROD)
        elif step == "leave":
            self.kill(USER, None, flush=True)
        elif step == "return":
            self._return()
        else:
            self._release()

    # -- what happens next

    def next(self) -> tuple[Any, ...] | None:
        """Return what happens if nothing goes wrong; None at the end of the run. Call it once before each `do`."""
        network = self.network
        network.lift()
        item = network.due()
        if item is not None:
            return ("deliver", item)
        user = self.user
        if user is not None and user.core.state == "Released" and not user.closed and not user.attaching:
            return ("close",)
        if self.script and self.can(self.script[0]):
            return ("act", self.script[0])
        coming = self._coming()
        if coming is not None:
            return coming
        if not self.at_rest:
            return ("rest",)
        if self.script:
            return ("skip", self.script[0])
        self._calm = (None, network.now)
        long = next((timer for timer in network.timers if timer.kind is LONG), None)
        return ("fire", long) if long is not None else None

    def _coming(self) -> tuple[Any, ...] | None:
        """Return what comes with time, unless time changes nothing any more."""
        network = self.network
        now = essence(self)
        if now != self._calm[0]:
            self._calm = (now, network.now)
        held = min((item.hold for item in network.flight), default=None)
        idle = held is None and all(timer.label == "_polled" or timer.kind is LONG for timer in network.timers)
        end = self._calm[1] + (ROUND if idle else LONG_ROUND)
        first = network.timers[0] if network.timers else None
        if held is not None and held <= end and (first is None or held <= first.when):
            return ("lift", held)
        return ("fire", first) if first is not None and first.when <= end else None

    def target(self, event: tuple[Any, ...]) -> Process | None:
        """Whose code runs when this happens."""
        if event[0] in ("deliver", "fire"):
            return event[1].process
        if event == ("act", "release") and self.user is not None:
            return self.user.process
        return None

    def do(self, event: tuple[Any, ...]) -> None:
        """Let an event happen."""
        process = self.target(event)
        if process is not None:
            process.effects = 0
            Now.process = process
        try:
            self._do(event)
        except Exception:
            self.not_handled()

    def not_handled(self) -> None:
        """Note that the parties' code has raised an exception, which a reactor would log."""
        self.broken.append(f"an exception was not handled:\n{traceback.format_exc()}")

    def _do(self, event: tuple[Any, ...]) -> None:
        kind, network = event[0], self.network
        if kind == "rest":
            self.at_rest = True
            return
        if kind == "deliver":
            network.deliver(event[1])
        elif kind == "fire":
            network.fire(event[1])
        elif kind == "lift":
            network.now = max(network.now, event[1])
        elif kind == "close":
            self._close()
        elif kind == "act":
            self.script.pop(0)
            self.act(event[1])
        elif kind == "skip":
            self.script.pop(0)
            return
        self.at_rest = False

    # -- what is seen from outside

    def _on_write(self, end: End, data: bytes) -> None:
        for check in self.on_write:
            check(self, end, data)

    on_write: tuple[Callable[[World, End, bytes], None], ...] = ()

    def _noted(self, level: Any, fields: dict[str, Any]) -> None:
        if "log_failure" in fields:
            self.broken.append("somebody logged a traceback:\n" + fields["log_failure"].getTraceback())
        elif "state" in fields:
            side = fields.get("role", "")
            self.news.append(f"{Now.process.party}{f' ({side})' if side else ''}: {fields['state']}")
        else:
            self.broken.append(f"somebody logged something critical: {fields}")


class _Program:
    """The unchanged program of an application: it does nothing, and never ends."""

    def start(self, _listeners: Sequence[str]) -> None:
        """Do nothing: the program runs."""

    def ended(self, _reactor: Any) -> Deferred[None]:
        return Deferred()


def _ignore(_line: str) -> None:
    """Nobody reads it."""


def connections_of(world: World, process: Process) -> list[Connection]:
    """Return the connections that a process has."""
    return [one for one in world.network.connections if process in (one.client.process, one.server.process)]
