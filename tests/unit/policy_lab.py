"""A facility in memory with a policy, and its users. The links are plain, and the test says who their user is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tomli_w
from twisted.internet.defer import Deferred
from zope.interface import directlyProvides, providedBy

from scistream.links.dialer import Dialer
from scistream.links.tls_links import dialer
from scistream.protocol.address import Address
from scistream.protocol.errors import StreamError
from scistream.protocol.messages import PROD, UNSENT, Command, Req, Resp, Role, Status
from scistream.s2cs.policy.file import load_policy
from scistream.s2cs.record import Record
from scistream.s2uc.client import Client, Stream
from scistream.tls.verify import Identity
from support.memory_facilities import CONS_S2CS, PROD_PORT, PROD_S2CS, World
from support.memory_network import HOST, MemoryNetwork

LAB, OTHER = "sha256:" + "a" * 64, "sha256:" + "b" * 64
ADA = Identity(LAB, "ada@lab.example")
BOB = Identity(LAB, "bob@lab.example")
IMPOSTOR = Identity(OTHER, "ada@lab.example")
OPERATOR = Identity(LAB, "operator@lab.example")
UIDS = [f"00000000-0000-4000-8000-{n:012}" for n in range(9)]


class As:
    """The network, as one user comes to it: the listeners of the S2CS know who she is."""

    def __init__(self, network: MemoryNetwork, identity: Identity) -> None:
        self._network = network
        self._identity = identity
        directlyProvides(self, providedBy(network))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)

    def connectTCP(self, host: str, port: int, factory: Any, *args: Any, **kwargs: Any) -> Any:
        """IReactorTCP."""
        build = factory.buildProtocol

        def build_known(address: Any) -> Any:
            self._network.listeners[port].coming = self._identity
            return build(address)

        factory.buildProtocol = build_known
        return self._network.connectTCP(host, port, factory, *args, **kwargs)


class Knowing:
    """A listener that gives the next link the peer that was announced; nobody, if none was."""

    def __init__(self, listener: Any) -> None:
        self._listener = listener
        self.coming: Identity | None = None

    def buildProtocol(self, address: Any) -> Any:
        """IProtocolFactory."""
        link = self._listener.buildProtocol(address)
        link.peer, self.coming = self.coming, None
        return link


class Lab:
    """A world whose producer's facility has a policy."""

    def __init__(self, folder: Path, gateways: int = 1) -> None:
        self._file = folder / "policy.toml"
        self.world = World(folder, gateways)
        self.control = self.world.prod.control
        for port in (self.world.prod.port, self.world.cons.port):
            self.world.network.listeners[port] = Knowing(self.world.network.listeners[port])

    def has(self, *sections: str) -> None:
        """From now on this is its policy."""
        self._file.write_text("\n".join(sections))
        self.control.authorizer.policy = load_policy(self._file)

    def client(self, identity: Identity = ADA) -> Client:
        return Client(insecure=True, reactor=As(self.world.network, identity))

    def ask(self, identity: Identity = ADA, **wishes: Any) -> Deferred[Stream]:
        fields = {"prod": PROD_S2CS, "cons": CONS_S2CS, "rate": 100.0, "expires": 3600.0, **wishes}
        return self.client(identity).request(**fields).deferred

    def request(self, identity: Identity = ADA, **wishes: Any) -> Stream:
        return self.world.result(self.ask(identity, **wishes))

    def refusal(self, identity: Identity = ADA, **wishes: Any) -> str:
        """Return the error message of a refused stream; check that neither side keeps anything."""
        before = self.world.prod.held(), self.world.cons.held(), self.live()
        error = self.world.refusal(self.ask(identity, **wishes))
        assert error.code == "not-authorized"
        assert (self.world.prod.held(), self.world.cons.held(), self.live()) == before
        return error.msg

    def live(self) -> list[Record]:
        """Return the records in the store of streams that are not released."""
        return [record for record in self.control.store.load() if record.state != "Released"]

    def link(self, identity: Identity) -> Dialer:
        """Open a lasting link of a user to the S2CS, to send what no library sends."""
        link = dialer(As(self.world.network, identity), Address(HOST, PROD_PORT), "the S2CS", None)
        link.startService()
        return link

    def say(self, identity: Identity, command: Command) -> Resp:
        return self.world.result(self.link(identity).ask(command, 30.0))

    def refused(self, identity: Identity, command: Command) -> StreamError:
        return self.world.refusal(self.link(identity).ask(command, 30.0))


def rule(identity: str = "ada@lab.example", issuer: str = LAB, name: str = "beamline", **limits: Any) -> str:
    fields = {"name": name, "issuer": issuer, "identities": [identity], "roles": ["PROD", "CONS"], **limits}
    return "[[rules]]\n" + tomli_w.dumps(fields)


def a_req(uid: str = UIDS[0], role: Role = PROD, **fields: Any) -> Req:
    whole = {"num_conn": 1, "rate": 1.0, "app_key_hash": "0" * 64, **fields}
    return Req(uid=uid, role=role, seq=UNSENT, **whole)


def everything(uid: str | None = None) -> Status:
    return Status(uid=uid, role=None, seq=UNSENT)
