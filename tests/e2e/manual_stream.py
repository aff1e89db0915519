"""One side of a stream, made by hand: the test is its user, its application, and the gateway on the other side.

It speaks to the S2CS as `s2uc` would, but keeps the key of the stream's authority, so that it can sign credentials
that no honest user would.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from types import TracebackType
from uuid import uuid4

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from harness import World
from OpenSSL import SSL
from OpenSSL.crypto import X509
from raw_peers import CLIENT, SERVER, Chain, RawLink, Signer

from scistream.pki.authority import Issued
from scistream.protocol.address import Address
from scistream.protocol.join_string import hash_app_key, new_app_key
from scistream.protocol.messages import CONS, PROD, Role
from scistream.tls.stream_channels import consumer_name, producer_name
from support.facilities import HOST, Facility


class HandMade:
    """One side of a stream at one facility. Released at the end of its context, unless that has been done.

    :param targets: for PROD what the application listens on; for CONS where the other gateway would be.
    :param hello: what the application names besides as where it listens.
    """

    def __init__(
        self, world: World, role: Role, targets: Sequence[str], num_conn: int = 1, hello: Sequence[str] = ()
    ) -> None:
        self.uid = str(uuid4())
        self.role = role
        self.facility: Facility = world.lab if role == PROD else world.centre
        self.targets = list(targets)
        self._generation = 0
        ada = Issued(world.folder / "users" / "ada.pem", world.folder / "users" / "ada.key")
        self._link = RawLink(self.facility.server.address, self.facility.authority, ada)
        self._seq = 0
        self._released = False
        self.app_key = new_app_key()
        reserved = self._ask(
            "REQ", num_conn=num_conn, rate=100.0, app_key_hash=hash_app_key(self.app_key), expires=600.0
        )
        self.listeners: list[str] = reserved["listeners"]
        self._csr = x509.load_pem_x509_csr(reserved["csr"].encode())
        if role == PROD:
            with RawLink(self.facility.server.address, self.facility.authority) as application:
                named = [*self.targets, *hello]
                about = {"uid": self.uid, "role": role, "seq": 1, "app_key": self.app_key}
                assert application.ask("Hello", **about, listeners=named)["cmd"] == "RESP"
            told = self._link.hear()
            assert told is not None
            assert told["cmd"] == "ProdLstn"
        self.authority = Signer()
        self.update()

    def _ask(self, cmd: str, **fields: object) -> dict[str, object]:
        self._seq += 1
        answer = self._link.ask(cmd, uid=self.uid, role=self.role, seq=self._seq, **fields)
        assert answer["cmd"] == "RESP", answer
        return answer

    def update(self) -> None:
        """Set the targets, under another authority than before."""
        answer = self.try_targets(dict(zip(self.listeners, self.targets, strict=True)))
        assert answer["state"] == "Streaming", answer

    def try_targets(self, connection_map: dict[str, str]) -> dict[str, object]:
        """Try to set other targets; return the answer, even if it is a refusal."""
        authority = Signer()
        own, usage = (producer_name(self.uid), SERVER) if self.role == PROD else (consumer_name(self.uid), CLIENT)
        public_key = self._csr.public_key()
        assert isinstance(public_key, ec.EllipticCurvePublicKey)
        chain = authority.sign([x509.DNSName(own)], usage, public_key=public_key)
        leaf, root = (each.public_bytes(serialization.Encoding.PEM).decode() for each in chain.certificates)
        self._seq += 1
        self._generation += 1
        answer = self._link.ask(
            "UpdateTargets",
            uid=self.uid,
            role=self.role,
            seq=self._seq,
            generation=self._generation,
            connection_map=connection_map,
            data_conn_key=root + leaf,
        )
        if answer["cmd"] == "RESP":
            self.authority = authority
        return answer

    def release(self) -> None:
        """End it."""
        self._released = True
        assert self._ask("REL")["state"] == "Released"

    def __enter__(self) -> HandMade:
        return self

    def __exit__(self, kind: type[BaseException] | None, wrong: object, trace: TracebackType | None) -> None:
        try:
            if not self._released:
                self.release()
        except AssertionError:
            if kind is None:  # else it says less than what went wrong before
                raise
        finally:
            self._link.__exit__()

    # -- as the gateway at the other side

    def address(self, channel: int = 0) -> Address:
        """Where a channel listens."""
        return Address.parse(self.listeners[channel])

    @property
    def of_other_side_name(self) -> str:
        """The name in the certificates of the gateways at the other side."""
        return consumer_name(self.uid) if self.role == PROD else producer_name(self.uid)

    def of_other_side(self, signer: Signer | None = None, name: str = "", **validity: object) -> Chain:
        """Return the chain that the gateway of the other side would present, with the given deviations."""
        usage = CLIENT if self.role == PROD else SERVER
        names = [x509.DNSName(name or self.of_other_side_name)]
        return (signer or self.authority).sign(names, usage, **validity)


def context(chain: Chain | None, *, server: bool = False, newest: int = SSL.TLS1_3_VERSION) -> SSL.Context:
    """Return the context of a gateway that presents `chain`, and accepts every certificate of the other one."""
    made = SSL.Context(SSL.TLS_SERVER_METHOD if server else SSL.TLS_CLIENT_METHOD)
    made.set_max_proto_version(newest)
    made.set_verify(SSL.VERIFY_NONE)
    if chain is not None:
        leaf, *others = chain.certificates
        made.use_certificate(leaf)
        made.use_privatekey(chain.key)
        for other in others:
            made.add_extra_chain_cert(other)
    return made


def trusting(made: SSL.Context, *authorities: x509.Certificate) -> SSL.Context:
    """Change a context so that it requests a certificate and accepts those of `authorities`."""
    store = made.get_cert_store()
    assert store is not None
    for authority in authorities:
        store.add_cert(X509.from_cryptography(authority))
    made.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT)
    return made


def nobody_waits(listener: socket.socket) -> bool:
    """Return True if no connection is waiting to be accepted."""
    listener.setblocking(False)
    try:
        listener.accept()[0].close()
    except BlockingIOError:
        return True
    finally:
        listener.settimeout(30.0)
    return False


__all__ = ["CONS", "HOST", "PROD", "HandMade", "context", "nobody_waits", "trusting"]
