"""Each party alone, over a link in memory to a far side that a test controls.

A far side says a script: lines of bytes, in each of which `$SEQ`, `$CSR`, `$KEY` and `$LISTENER` stand for what this
run has brought forth; a line that begins with `!` lets that many seconds pass, one that begins with `C` goes over the
second link of a party that has two. `check` is what must hold whatever was said. The fuzzers use these too.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from msgspec import structs
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import globalLogPublisher
from twisted.python.failure import Failure

from scistream.app.controller import Controller
from scistream.links.dialer import LinkFactory
from scistream.links.link import MAX_BAD_LINES, Link
from scistream.links.tls_links import PLAIN_IDENTITY
from scistream.protocol.address import Address
from scistream.protocol.codec import MAX_LINE, decode, encode, is_answer
from scistream.protocol.errors import BadMessageError, StreamError
from scistream.protocol.join_string import Join, hash_app_key
from scistream.protocol.messages import (
    CONS,
    PROD,
    ChannelFigures,
    Error,
    Hello,
    Message,
    Rel,
    Req,
    Resp,
    Role,
    Status,
    UpdateTargets,
)
from scistream.s2cs.gateway import GatewayLink as PoolMember
from scistream.s2cs.machine import STATES as S2CS_STATES
from scistream.s2cs.service import ControlServer
from scistream.s2cs.settings import GatewaySettings, S2CSConfig
from scistream.s2ds.machine import STATES as S2DS_STATES
from scistream.s2ds.service import DataServer
from scistream.s2ds.settings import S2DSConfig
from scistream.s2uc.client import Client
from scistream.s2uc.machine import STATES as S2UC_STATES
from scistream.s2uc.stream_certificates import issue_credentials
from scistream.tls.stream_channels import StreamSecret
from scistream.tls.verify import Identity
from support.memory_network import HOST, MemoryNetwork, MemoryPorts, Program

UID = "12345678-1234-4234-8234-123456789abc"
"""The stream that the far side talks about."""
OTHER_UID = "87654321-4321-4234-8234-cba987654321"
"""A stream of somebody else, or one of an earlier run."""
THIRD_UID = "99999999-4321-4234-8234-cba987654321"
"""A stream that nobody has asked for."""
BOOT, OTHER_BOOT = "b" * 32, "c" * 32
KEY = "k" * 43
OTHER_KEY = "o" * 43

SETTLE = 0.02
MOST_SECONDS = 600.0
"""A script lets no more time pass than this, and 60 s a line."""

BASE_BYTES, BYTES_A_LINE = 65536, 32768
"""A party writes no more than this in all and for each line, second and link: how a flood through it is bounded."""

FAR, GATEWAY, FALSE_GATEWAY, CONTROL = 99, 5001, 5002, 5000
PROD_PORT, CONS_PORT = 5000, 6000

_csr = {role: StreamSecret().csr for role in (PROD, CONS)}


class FarEnd(Protocol):
    """The far side of one link: keeps what it hears."""

    transport: Any

    def __init__(self) -> None:
        self.heard = b""
        self.messages: list[Message] = []
        self.said: list[bytes] = []
        self.bad_lines = 0
        self.closed = False

    def dataReceived(self, data: bytes) -> None:
        """Each line has to be a message."""
        read = self.heard.count(b"\n")
        self.heard += data
        lines = self.heard.split(b"\n")[read:-1]
        assert all(len(line) < MAX_LINE for line in lines)
        self.messages += map(decode, lines)

    def say(self, line: bytes) -> None:
        """Send a line of its own."""
        self.said.append(line)
        self.bad_lines += _is_bad(line)
        self.transport.write(line + b"\n")

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.closed = True

    def answered(self, field: str) -> Any:
        """Return the value of a field in the last answer that has the field."""
        answers = [message for message in self.messages if isinstance(message, Resp)]
        return next((value for answer in reversed(answers) if (value := getattr(answer, field))), None)

    def asked(self) -> int:
        """Return the number of the last command."""
        commands = [message for message in self.messages if not isinstance(message, Resp | Error)]
        return next((number for one in reversed(commands) if (number := getattr(one, "seq", 0))), 1)


class _Far(Factory):
    """Makes far ends and keeps them, as the one who dials or the one who is dialled."""

    noisy = False

    def __init__(self) -> None:
        self.ends: list[FarEnd] = []

    def buildProtocol(self, addr: Any) -> FarEnd:
        self.ends.append(FarEnd())
        return self.ends[-1]

    def startedConnecting(self, connector: Any) -> None:
        """IConnector."""


class Party(ABC):
    """One party and its far side.

    :param folder: for what it stores.
    """

    def __init__(self, folder: Path) -> None:
        self.network = MemoryNetwork()
        self.crashes: list[str] = []
        self.lines = 0
        self.seconds = 0.0
        self._far: list[_Far] = [_Far(), _Far()]
        globalLogPublisher.addObserver(self._note)
        try:
            self.start(folder)
            self.network.run(SETTLE)
        except BaseException:
            globalLogPublisher.removeObserver(self._note)
            raise

    def close(self) -> None:
        """Nothing of it stays."""
        try:
            self.stop()
        finally:
            globalLogPublisher.removeObserver(self._note)

    def _note(self, event: dict[str, Any]) -> None:
        if "log_failure" in event:
            self.crashes.append(event["log_failure"].getTraceback())

    @abstractmethod
    def start(self, folder: Path) -> None:
        """Make the party, and link it to its far side."""

    @abstractmethod
    def stop(self) -> None:
        """End it in order."""

    @abstractmethod
    def check_state(self) -> None:
        """Check the invariants of this party's own state."""

    def hear(self, script: Iterable[bytes]) -> None:
        """Receive a script from the far side; check the invariants after each line."""
        for line in script:
            self.say(line)
            self.check()

    def say(self, line: bytes) -> None:
        """One line of a script."""
        if line.startswith(b"!"):
            self._let_pass(line[1:])
            return
        far = self.far(1 if line.startswith(b"C") else 0)
        line = line.removeprefix(b"C")
        if far is None or far.closed:
            return
        line = self._filled_in(line, far)
        self.lines += 1
        far.say(line)
        self.network.run(SETTLE)

    def far(self, number: int) -> FarEnd | None:
        """Return the latest link to one of the far sides."""
        ends = self._far[number].ends
        return ends[-1] if ends else None

    def ends(self) -> list[FarEnd]:
        """All links that ever were."""
        return [end for far in self._far for end in far.ends]

    def _let_pass(self, text: bytes) -> None:
        match = re.match(rb"\d{1,3}", text)
        seconds = min(60.0, float(match[0]) if match else 1.0, MOST_SECONDS - self.seconds)
        self.seconds += seconds
        self.network.run(seconds)

    def _filled_in(self, line: bytes, far: FarEnd) -> bytes:
        if b"$" not in line:
            return line
        known: dict[bytes, Any] = {b'"$SEQ"': far.asked()}
        for role, csr in _csr.items():
            known[b'"$CSR-%b"' % role.encode()] = csr
        listeners = far.answered("listeners") or [f"{HOST}:50010"]
        known[b'"$LISTENER"'] = listeners[0]
        if b"$KEY" in line:
            known[b'"$KEY"'] = self._credentials(far.answered("csr") or _csr[PROD])
        for name, value in known.items():
            line = line.replace(name, json.dumps(value).encode())
        return line

    def _credentials(self, csr: str) -> str:
        try:
            return issue_credentials(UID, 1, 3600.0, {PROD: csr})[PROD]
        except StreamError:
            return "none"

    def check(self) -> None:
        """Check what must hold after any input."""
        assert not self.crashes, self.crashes[0]
        ends = self.ends()
        count, size = sum(len(end.messages) for end in ends), sum(len(end.heard) for end in ends)
        asked = f"{self.lines} lines in {self.seconds} s on {len(ends)} links"
        allowed = self.lines + self.seconds + len(ends) + 1
        assert count <= 8 * allowed, f"{count} messages for {asked}"
        assert size <= BASE_BYTES + BYTES_A_LINE * allowed, f"{size} bytes for {asked}"
        for end in ends:
            assert end.bad_lines < MAX_BAD_LINES or end.closed, "it is still there after 8 bad lines"
        self.check_state()


def _is_bad(line: bytes) -> bool:
    """Return True if it is surely a line that is no message, and nothing else."""
    if b"\n" in line:
        return False
    is_answer(line)
    try:
        decode(line)
    except BadMessageError:
        return True
    return False


# -- the servers


def a_gateway(network: MemoryNetwork, folder: Path) -> DataServer:
    settings = S2DSConfig(listen=f"{HOST}:{GATEWAY}", insecure=True, ports="50010-50017", capacity="1Gbit", elements=0)
    server = DataServer(network, settings, folder / "s2ds.toml")
    server.ports = MemoryPorts(50010, 50017)
    server.startService()
    return server


def check_gateway(server: DataServer) -> None:
    """Ports and capacity in use are those of live streams, and only armed channels listen."""
    holdings = list(server._streams.values())
    live = [one._core for one in holdings if one._core.state not in ("Idle", "Released")]
    assert {one._core.state for one in holdings} <= {state.name for state in S2DS_STATES}
    requests = [core.request for core in live if core.request is not None]
    assert 8 - server.ports.free == sum(len(request.channels) for request in requests)
    promised = server.capacity.total - server.capacity.free
    assert abs(promised - sum(request.rate for request in requests)) <= 1e-6
    assert promised <= server.capacity.total
    listening = sum(sock.listens for sock in server.ports._given)  # type: ignore[attr-defined]
    armed = [core.request for core in live if core.current is not None and core.request is not None]
    assert listening == sum(len(request.channels) for request in armed)
    assert len(server.elements._streams) == len(requests)


class DataServerParty(Party):
    """An S2DS; the far side is its controller."""

    def start(self, folder: Path) -> None:
        self.server = a_gateway(self.network, folder)
        self.network.listeners[FAR] = _listener(self.server, self.network, PLAIN_IDENTITY)
        self.network.connectTCP(HOST, FAR, self._far[0])

    def stop(self) -> None:
        self.server.stopService()
        self.network.run(SETTLE)
        assert self.server.ports.free == 8
        assert self.server.capacity.free == self.server.capacity.total

    def check_state(self) -> None:
        check_gateway(self.server)


def _listener(owner: Any, network: MemoryNetwork, peer: Identity | None) -> LinkFactory:
    """Return a listener whose peers are taken for `peer`, as after a TLS handshake."""
    return LinkFactory(lambda _: Link(owner, network, None, peer, accepted=True))


ADA = Identity("sha256:" + "a" * 64, "ada@lab.example")
EVE = Identity("sha256:" + "a" * 64, "eve@lab.example")


class ControlServerParty(Party):
    """An S2CS with one gateway. Ada has a stream there, `OTHER_UID`, that streams; the far side is somebody else."""

    visitor: Identity | None = EVE

    def start(self, folder: Path) -> None:
        self.gateway = a_gateway(self.network, folder)
        settings = S2CSConfig(listen=f"{HOST}:{CONTROL}", gateways=self._pool(), insecure=True)
        self.server = ControlServer(self.network, settings, folder / "s2cs.toml", wall=self.network.seconds)
        self.server.startService()
        self.network.until(lambda: all(one.settled for one in self.server.gateways.values()))
        self._stream_of_ada()
        self._admission()

    def _pool(self) -> list[GatewaySettings]:
        return [GatewaySettings(name="dtn", address=f"{HOST}:{GATEWAY}")]

    def _admission(self) -> None:
        self.network.listeners[FAR] = _listener(self.server, self.network, self.visitor)
        self.network.connectTCP(HOST, FAR, self._far[0])

    def _stream_of_ada(self) -> None:
        """Her links stay up, and so she would hear of whatever becomes of it."""
        self._adas = _Far()
        self.network.listeners[FAR - 1] = _listener(self.server, self.network, ADA)
        self.network.connectTCP(HOST, FAR - 1, self._adas)
        self.network.run(SETTLE)
        (link,) = self._adas.ends
        ask = {"uid": OTHER_UID, "role": PROD}
        about_it = {"num_conn": 2, "rate": 10.0, "app_key_hash": hash_app_key(OTHER_KEY), "expires": 86400.0}
        self._ada_asks(link, Req(seq=1, **ask, **about_it))  # type: ignore[arg-type]
        listeners, csr = link.answered("listeners"), link.answered("csr")
        self._ada_asks(link, Hello(seq=2, **ask, app_key=OTHER_KEY, listeners=[f"{HOST}:7000"]))  # type: ignore[arg-type]
        targets = dict.fromkeys(listeners, f"{HOST}:7000")
        keys = issue_credentials(OTHER_UID, 1, 3600.0, {PROD: csr})[PROD]
        update = UpdateTargets(seq=3, generation=1, connection_map=targets, data_conn_key=keys, **ask)  # type: ignore[arg-type]
        self._ada_asks(link, update)
        self._before = self._adas_record()
        assert self.server.streams[OTHER_UID, PROD].record.state == "Streaming"

    def _ada_asks(self, link: FarEnd, command: Message) -> None:
        link.transport.write(encode(command))
        self.network.run(SETTLE)

    def _adas_record(self) -> bytes:
        return json.dumps(repr(self.server.streams[OTHER_UID, PROD].record)).encode()

    def stop(self) -> None:
        self.server.stopService()
        self.gateway.stopService()
        self.network.run(SETTLE)

    def check_state(self) -> None:
        check_gateway(self.gateway)
        assert self._adas_record() == self._before, "somebody else's words have changed ada's stream"
        names = {state.name for state in S2CS_STATES}
        for held in self.server.streams.values():
            assert held.record.state in names
        stored = {record.key: record.state for record in self.server.store.load(live=True)}
        known = {key: held.record.state for key, held in self.server.streams.items()}
        assert stored == known, "the store says what is so"
        assert not self.server.unwritten
        ever = {record.key for record in self.server.store.load()}  # those that are over, too
        for end in self.ends():
            if (OTHER_UID, CONS) not in ever:  # which anybody may ask for: ada has the other role
                assert OTHER_UID not in {message.uid for message in end.messages if isinstance(message, Resp)}
            assert b"ada@lab.example" not in end.heard, "what is hers is hers"


class UserAtControlServer(ControlServerParty):
    """The far side is a user with a certificate, who is not ada."""


class ApplicationAtControlServer(ControlServerParty):
    """The far side has no certificate. Eve's stream `UID` waits for its applications, whose key is `KEY`."""

    visitor = None

    def start(self, folder: Path) -> None:
        super().start(folder)
        self.network.listeners[FAR - 2] = _listener(self.server, self.network, EVE)
        eves = _Far()
        self.network.connectTCP(HOST, FAR - 2, eves)
        self.network.run(SETTLE)
        request = {"num_conn": 1, "rate": 1.0, "app_key_hash": hash_app_key(KEY), "hello_timeout": 86000.0}
        self._ada_asks(eves.ends[0], Req(uid=UID, role=CONS, seq=1, **request))  # type: ignore[arg-type]
        self._eves = eves

    def check_state(self) -> None:
        super().check_state()
        assert set(self.server.streams) == {(OTHER_UID, PROD), (UID, CONS)}, "who has no certificate makes no stream"
        record = self.server.streams[UID, CONS].record
        greeted = any(KEY.encode() in line and b"Hello" in line for end in self.ends() for line in end.said)
        assert record.state == "Listening" or (record.state == "Ready" and greeted)
        assert record.generation == 0


class GatewayAtControlServer(ControlServerParty):
    """The far side is a second gateway of the S2CS, which it dials; on the second link Eve asks for streams there.

    Ada's stream is on the first gateway, an honest one.
    """

    def start(self, folder: Path) -> None:
        super().start(folder)
        self.network.listeners[FALSE_GATEWAY] = self._far[0]
        self.network.until(lambda: self.false.dialer.link is not None, 10.0)
        self.network.listeners[FAR - 2] = _listener(self.server, self.network, EVE)
        self.network.connectTCP(HOST, FAR - 2, self._far[1])

    def _pool(self) -> list[GatewaySettings]:
        return [*super()._pool(), GatewaySettings(name="false", address=f"{HOST}:{FALSE_GATEWAY}")]

    def _admission(self) -> None:
        """Connect to the far side."""

    @property
    def false(self) -> PoolMember:
        """What the S2CS knows of the false gateway."""
        return self.server.gateways["false"]

    def _adas_record(self) -> bytes:
        held = self.server.streams[OTHER_UID, PROD]
        status = held.status()
        moved = [one for one in status.figures if one != ChannelFigures(channel=one.channel)]
        shown = structs.replace(status, seconds_left=0.0, figures=moved)
        carried = self.server.ledger.total(held.record), self.server.ledger.usage_today(held.record.owner)
        return super()._adas_record() + repr((shown, carried)).encode()

    def check_state(self) -> None:
        super().check_state()
        mine = self.server._reports.held_by("false")
        assert set(self.false.figures) | set(self.false.probes) <= set(self.server.streams)
        waiting = Counter(repr(one.command) for one in self.false.dialer.outbox._waiting)
        assert all(count <= 2 for said, count in waiting.items() if said.startswith("Rel")), "it asks on and on"
        for key in mine:
            record = self.server.streams[key].record
            assert record.request is not None
            assert record.state == "Releasing" or len(record.listeners) == record.request.num_conn


# -- who dials: the far side is a hostile S2CS


class UserClient(Party):
    """S2UC: it asks two facilities for `UID`, and goes on with `OTHER_UID`, which an earlier run asked for."""

    def start(self, folder: Path) -> None:
        self.network.listeners[PROD_PORT], self.network.listeners[CONS_PORT] = self._far
        self.client = Client(insecure=True, reactor=self.network, remember=False)
        at = {"prod": f"{HOST}:{PROD_PORT}", "cons": f"{HOST}:{CONS_PORT}"}
        asked = self.client.request(uid=UID, num_conn=1, rate=10.0, **at)
        self.outcome: list[Any] = []
        self.stream = asked.stream
        asked.deferred.addBoth(self._note_outcome)
        self.earlier = self.client.remembered(uid=OTHER_UID, **at)
        self.earlier.attach().deferred.addBoth(self._note_outcome)
        self.stream.provisioned().deferred.addBoth(self._note_outcome)
        self._generations = [0, 0]
        self._secrets = [key.encode() for key in self.stream._effects._app_keys.values()]

    def _note_outcome(self, result: Any) -> None:
        self.outcome.append(result)

    def stop(self) -> None:
        self.client.close().deferred.addErrback(lambda _: None)
        self.network.run(SETTLE)

    def check_state(self) -> None:
        for result in self.outcome:
            assert not isinstance(result, Failure) or isinstance(result.value, StreamError), result.getTraceback()
        streams = [self.stream, self.earlier]
        assert {one.state for one in streams} <= {state.name for state in S2UC_STATES}
        generations = [one.generation for one in streams]
        assert all(now >= before for now, before in zip(generations, self._generations, strict=True))
        self._generations = generations
        for end in self.ends():
            assert not any(secret in end.heard for secret in self._secrets), "an S2CS learns the hash of a key alone"
            assert {type(message) for message in end.messages} <= {Req, Status, UpdateTargets, Rel, Error}


class Applications(Party):
    """The controllers of a ProdApp and a ConsApp, each with a program to start."""

    PROGRAMS: dict[Role, list[str]] = {PROD: ["detector", "{port}"], CONS: ["analyse", "{host}", "-p{port}", "{x}"]}  # noqa: RUF012

    def start(self, folder: Path) -> None:
        self.network.listeners[PROD_PORT], self.network.listeners[CONS_PORT] = self._far
        self.outcome: list[Any] = []
        self.notes: list[str] = []
        self.controllers: dict[Role, Controller] = {}
        for role, port in ((PROD, PROD_PORT), (CONS, CONS_PORT)):
            join = Join(UID, KEY, Address(HOST, port), role, None)
            listeners = [Address("0.0.0.0", 7000)] if role == PROD else []
            program = Program(self.network, self.PROGRAMS[role])
            controller = Controller(self.network, join, listeners, program, self.notes.append)
            controller.run().addBoth(self.outcome.append)
            self.controllers[role] = controller

    def stop(self) -> None:
        for controller in self.controllers.values():
            controller._stop()
        for program in self.network.programs:
            program.end()
        self.network.run(SETTLE)

    def check_state(self) -> None:
        for result in self.outcome:
            reason = result.value if isinstance(result, Failure) else result
            assert reason is None or isinstance(reason, StreamError), result
        started = [program.args[0] for program in self.network.programs]
        assert len(started) == len(set(started)), "a program is started once"
        assert all(" " not in word for program in self.network.programs for word in program.args[:3])
        for end, role in ((end, role) for far, role in zip(self._far, (PROD, CONS), strict=True) for end in far.ends):
            for message in end.messages:
                assert isinstance(message, Hello | Resp | Error)
                assert not isinstance(message, Hello) or (message.role, message.uid) == (role, UID)


# -- what a far side says when it means well: where mutations start from


def _line(cmd: str, **fields: Any) -> bytes:
    return json.dumps({"cmd": cmd, **fields}).encode()


def _about(role: Role = PROD, seq: Any = 1, uid: str = UID) -> dict[str, Any]:
    return {"uid": uid, "role": role, "seq": seq}


_REQ = {"num_conn": 1, "rate": 1.0, "app_key_hash": hash_app_key(KEY), "expires": 50.0, "hello_timeout": 20.0}
_TARGETS = {"generation": 1, "connection_map": {"$LISTENER": f"{HOST}:7000"}, "data_conn_key": "$KEY"}
_STATUS = _line("Status", uid=None, role=None, seq=9, limit=5)
_RESERVE = {"channels": [0], "rate": 10.0, "expires": 40.0, "wan_security": "encrypt"}
_RESERVED = {"state": "Listening", "msg": "", "listeners": [f"{HOST}:50010"]}


def _status_of(role: Role, state: str, **more: Any) -> dict[str, Any]:
    sides = {PROD: f"{HOST}:50010", CONS: f"{HOST}:60010"}
    return {"uid": OTHER_UID, "role": role, "state": state, "listeners": [sides[role]], "csr": f"$CSR-{role}",
            "seconds_left": 3600.0, **more}  # fmt: skip


_MUCH_ROOM = {"ports": 1000, "rate": 5000.0}
_ROOM = _line("RESP", uid=None, seq="$SEQ", state="", msg="", boot=BOOT, room=_MUCH_ROOM, streams=[])
_FIGURES = {"channel": 0, "bytes_to_consumer": 9, "bytes_to_producer": 8, "connections": 0, "accepted": 1, "reset": 0}
_PROBE = {"state": "done", "connect_ms": 1.0, "rtt_ms": 0.5, "mbit_to_consumer": 9.5, "mbit_to_producer": 9.5,
          "bytes": 1000, "bytes_right": True}  # fmt: skip


def _at_gateway(uid: str, role: Role = PROD, **more: Any) -> dict[str, Any]:
    return {"uid": uid, "role": role, "state": "Forwarding", "figures": [_FIGURES], "generation": 1, **more}


def _to(second: bool, line: bytes) -> bytes:
    return b"C" + line if second else line


SCRIPTS: dict[type[Party], list[list[bytes]]] = {
    UserAtControlServer: [
        [
            _line("REQ", **_about(), **_REQ, label="scan", app_from=["127.0.0.0/8"]),
            _line("Hello", **_about(seq=2), app_key=KEY, listeners=[f"{HOST}:7000"]),
            _line("UpdateTargets", **_about(seq=3), **_TARGETS),
            _STATUS,
            _line("REL", **_about(seq=4)),
        ],
        [_line("REQ", **_about(CONS), **_REQ), _STATUS, b"!25", _STATUS, _line("REQ", **_about(CONS), **_REQ)],
        [_line("REQ", **_about(), **{**_REQ, "num_conn": 5, "rate": 900.0}), b"!60", _line("REL", **_about(seq=2))],
        [_line("REL", **_about()), _line("REQ", **_about(), **_REQ)],
        [
            _line("REQ", **_about(CONS), **{**_REQ, "expires": 30.0, "protocol": "probe", "probe_seconds": 2.0}),
            _line("UpdateTargets", **_about(CONS, 2), **_TARGETS),
            b"!9",
        ],
        [
            _line("REL", **_about(uid=OTHER_UID)),
            _line("UpdateTargets", **_about(uid=OTHER_UID), **_TARGETS),
            _line("REQ", **_about(uid=OTHER_UID), **_REQ),
            _line("Status", **_about(uid=OTHER_UID)),
            _line("Hello", **_about(uid=OTHER_UID), app_key=KEY, listeners=[f"{HOST}:7000"]),
        ],
    ],
    GatewayAtControlServer: [
        [
            _ROOM,
            b"C" + _line("REQ", **_about(), **_REQ),
            _line("RESP", uid=UID, seq="$SEQ", **_RESERVED, csr="$CSR-PROD", boot=BOOT),
            b"C" + _line("Hello", **_about(seq=2), app_key=KEY, listeners=[f"{HOST}:7000"]),
            b"C" + _line("UpdateTargets", **_about(seq=3), **_TARGETS),
            _line("RESP", uid=UID, seq="$SEQ", state="Forwarding", msg="", boot=BOOT),
            b"C" + _line("Status", uid=UID, role=None, seq=4),
            _line("RESP", uid=UID, seq="$SEQ", state="", msg="", boot=BOOT, streams=[_at_gateway(UID)]),
            b"!15",
            _line("RESP", uid=None, seq="$SEQ", state="", msg="", boot=BOOT, room=_MUCH_ROOM,
                  streams=[_at_gateway(UID)]),
            b"C" + _line("REL", **_about(seq=5)),
            _line("RESP", uid=UID, seq="$SEQ", state="Released", msg="", boot=BOOT, figures=[_FIGURES]),
        ],
        [
            _ROOM,
            b"C" + _line("REQ", **_about(CONS), **{**_REQ, "num_conn": 4}),
            _line("ERROR", uid=UID, seq="$SEQ", code="no-ports", msg="none"),
            _line("ERROR", uid=UID, seq="$SEQ", code="unknown-uid", msg="none"),
        ],
        [
            _ROOM,
            b"!15",
            _line("RESP", uid=None, seq="$SEQ", state="", msg="", boot=BOOT, room=_MUCH_ROOM,
                  streams=[_at_gateway(OTHER_UID), _at_gateway(THIRD_UID)], more=f"{THIRD_UID}/PROD"),
            _line("RESP", uid=None, seq="$SEQ", state="", msg="", boot=BOOT, room=_MUCH_ROOM, streams=[]),
            _line("ERROR", uid=OTHER_UID, role=PROD, code="expired", msg="over"),
            b"!31",
        ],
        [
            _ROOM,
            b"C" + _line("REQ", **_about(CONS), **{**_REQ, "protocol": "probe", "probe_seconds": 2.0}),
            _line("RESP", uid=UID, seq="$SEQ", **_RESERVED, csr="$CSR-CONS", boot=BOOT),
            b"C" + _line("UpdateTargets", **_about(CONS, 3), **_TARGETS),
            _line("RESP", uid=UID, seq="$SEQ", state="Forwarding", msg=""),
            b"!15",
            _line("RESP", uid=None, seq="$SEQ", state="", msg="", boot=BOOT, room=_MUCH_ROOM,
                  streams=[_at_gateway(UID, role=CONS, probe=_PROBE)]),
            b"C" + _STATUS,
            b"!3",
            _line("RESP", uid=None, seq="$SEQ", state="", msg="", boot=OTHER_BOOT, room=_MUCH_ROOM),
        ],
    ],
    ApplicationAtControlServer: [
        [_line("Hello", **_about(CONS), app_key=KEY), b"!15", _line("Hello", **_about(CONS, 2), app_key=KEY)],
        [_line("Hello", **_about(CONS), app_key=OTHER_KEY)],
        [_line("Hello", **_about(PROD), app_key=KEY, listeners=[f"{HOST}:7000"])],
        [_line("REQ", **_about(), **_REQ), _line("REL", **_about(CONS)), _STATUS],
        [_line("RESP", uid=UID, seq=1, state="Connected", msg="")],
        [_line("ERROR", uid=UID, seq=1, code="expired", msg="")],
    ],
    DataServerParty: [
        [
            _line("ReqListeners", **_about(), **_RESERVE),
            _line("UpdateTargets", **_about(seq=2), **_TARGETS),
            _line("Status", uid=None, role=None, seq=3),
            _line("REL", **_about(seq=4)),
        ],
        [_line("ReqListeners", **_about(CONS), **{**_RESERVE, "channels": [0, 3]}), b"!50", _STATUS],
        [_line("ReqListeners", **_about(), **{**_RESERVE, "rate": 2000.0}), _line("REL", **_about(seq=2))],
        [
            _line("ReqListeners", **_about(), **_RESERVE, protocol="probe", probe_seconds=1.0, app_from=["::1/128"]),
            _line("UpdateTargets", **_about(seq=2), **{**_TARGETS, "connection_map": {"$LISTENER": "a.example:1"}}),
        ],
        [
            _line("ReqListeners", **_about(), **_RESERVE),
            _line("UpdateTargets", **_about(seq=2), **_TARGETS),
            _line("UpdateTargets", **_about(seq=3), **{**_TARGETS, "generation": 2}),
        ],
    ],
    UserClient: [
        [
            *(
                _to(role == CONS, _line("RESP", uid=UID, seq=1, **{**_RESERVED, "csr": f"$CSR-{role}"}))
                for role in (PROD, CONS)
            ),
            _line("ProdLstn", uid=UID, role=PROD, listeners=[f"{HOST}:7000"]),
            _line("RESP", uid=UID, seq="$SEQ", state="Streaming", msg=""),
            b"C" + _line("RESP", uid=UID, seq="$SEQ", state="Streaming", msg=""),
            b"!16",
            _line("ERROR", uid=UID, role=PROD, code="expired", msg="over"),
        ],
        [_line("ERROR", uid=UID, seq=1, code="no-ports", msg="none"), b"!40"],
        [
            _line("RESP", uid=UID, seq="$SEQ", state="", msg="", streams=[_status_of(PROD, "Streaming", generation=1,
                  app_listeners=[f"{HOST}:7000"])]),
            b"C" + _line("RESP", uid=UID, seq="$SEQ", state="", msg="", streams=[_status_of(CONS, "Listening")]),
            _line("ProdLstn", uid=OTHER_UID, role=PROD, listeners=[f"{HOST}:7001"]),
            _line("RESP", uid=UID, seq="$SEQ", state="Streaming", msg=""),
            b"!5",
        ],
        [b"C" + _line("RESP", uid=UID, seq=1, state="Reserving", msg=""), b"!20", b"C" + _line("StartConn", **_about(),
         listeners=[f"{HOST}:1"])],
    ],
    Applications: [
        [_line("RESP", uid=UID, seq=1, state="Ready", msg=""), b"!16", _line("ERROR", uid=UID, code="expired", msg="")],
        [
            b"C" + _line("RESP", uid=UID, seq=1, state="Ready", msg=""),
            b"C" + _line("StartConn", **_about(CONS), listeners=[f"{HOST}:50010", "[::1]:50011", "a.example:1"]),
            b"C" + _line("StartConn", **_about(CONS, 2), listeners=[f"{HOST}:50012"]),
        ],
        [b"C" + _line("ERROR", uid=UID, seq=1, code="not-authorized", msg="no"), b"!31"],
        [_line("StartConn", **_about(), listeners=[f"{HOST}:50010"]), _line("Hello", **_about(), app_key=KEY)],
    ],
}  # fmt: skip
"""For each party the conversations of a far side that means well, or nearly so."""
