"""What a new connection costs at two gateways, stage by stage: ``python -m bench.connection``.

Each stage is measured by itself, in processor time of this process. A stage is repeated in short batches and the best
batch counts, since other programs on the machine can only slow a batch down.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from uuid import uuid4

import click
from OpenSSL import SSL

from bench.stages import Stage, show
from scistream.protocol.messages import CONS, PROD
from scistream.s2ds.relay import openssl
from scistream.s2ds.relay.leg import prepare
from scistream.s2ds.relay.tickets import GivenTickets, KeptTickets
from scistream.s2uc.stream_certificates import issue_credentials
from scistream.tls.stream_channels import StreamSecret, server_name, verify_peer

BATCH = 20
BATCHES = 15


def best(step: Callable[[], float]) -> float:
    """Return the seconds that a step takes, as it measures by itself: the median of the best batch."""
    return min(sorted(step() for _ in range(BATCH))[BATCH // 2] for _ in range(BATCHES))


def timed(action: Callable[[], object]) -> Callable[[], float]:
    """Return a step that measures an action."""

    def step() -> float:
        began = time.thread_time_ns()
        action()
        return (time.thread_time_ns() - began) * 1e-9

    return step


class Handshakes:
    """Handshakes of the two gateways of a stream, in memory."""

    def __init__(self) -> None:
        self.uid = str(uuid4())
        secrets = {role: StreamSecret() for role in (PROD, CONS)}
        bundles = issue_credentials(self.uid, 1, 600.0, {role: secret.csr for role, secret in secrets.items()})
        credentials = {role: secrets[role].credentials(bundles[role], self.uid, role) for role in (PROD, CONS)}
        self.dialled, self.dialling = credentials[PROD].context(), credentials[CONS].context()
        self.given = GivenTickets(self.dialled, credentials[PROD].ticket_key)
        self.kept = KeptTickets(self.dialling)

    def ends(self) -> tuple[SSL.Connection, SSL.Connection]:
        """Return the two ends of a connection: that of the gateway that dials, and the other."""
        client, server = SSL.Connection(self.dialling, None), SSL.Connection(self.dialled, None)
        client.set_tlsext_host_name(server_name(self.uid, 0).encode())
        client.set_connect_state()
        server.set_accept_state()
        return client, server

    def handshake(self) -> tuple[float, float]:
        """Do a handshake; return the seconds that each end has taken, without the checks of names."""
        client, server = self.ends()
        self.kept.use(client)
        spent = [0.0, 0.0]
        while not all([self._advance(client, server, spent, 0), self._advance(server, client, spent, 1)]):
            pass
        return spent[0], spent[1]

    def finish(self) -> tuple[SSL.Connection, SSL.Connection]:
        """Return the two ends of a connection after a handshake."""
        client, server = self.ends()
        self.kept.use(client)
        while not all([self._advance(client, server, [0.0], 0), self._advance(server, client, [0.0], 0)]):
            pass
        return client, server

    def verify(self, client: SSL.Connection, server: SSL.Connection) -> None:
        """Check the names in the certificates of both ends, and pass a ticket."""
        verify_peer(client, self.uid, 0, CONS, dials=True)
        verify_peer(server, self.uid, 0, PROD, dials=False)
        self.kept.keep(client, self.given.give(server))

    @staticmethod
    def _advance(own: SSL.Connection, other: SSL.Connection, spent: list[float], at: int) -> bool:
        began = time.thread_time_ns()
        is_complete = openssl.advance_handshake(own)
        output = openssl.take_output(own)
        spent[at] += (time.thread_time_ns() - began) * 1e-9
        if output:
            openssl.give_input(other, output)
        return is_complete


def open_and_close() -> None:
    """Open a TCP connection over loopback, pass a byte each way, and close both ends."""
    with closing(socket.create_connection(_listener.getsockname())) as one, closing(_listener.accept()[0]) as other:
        for source, sink in ((one, other), (other, one)):
            source.send(b"?")
            sink.recv(1)


_listener = socket.create_server(("127.0.0.1", 0))


def hand_over() -> None:
    """Pass a descriptor through a socket pair, as an initiator does to an element."""
    socket.send_fds(_ours, [bytes(120)], [_listener.fileno()])
    _, (descriptor,), _, _ = socket.recv_fds(_theirs, 256, 1)
    os.close(descriptor)


_ours, _theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def costs() -> Sequence[Stage]:
    """Measure all stages."""
    shakes = Handshakes()
    with_certificates = [best(lambda end=end: shakes.handshake()[end]) for end in (0, 1)]  # type: ignore[misc]
    client, server = shakes.finish()
    verified = best(timed(lambda: shakes.verify(client, server)))
    with_ticket = [best(lambda end=end: shakes.handshake()[end]) for end in (0, 1)]  # type: ignore[misc]
    made = best(timed(shakes.ends)) / 2
    with socket.socket() as sock:
        options = best(timed(lambda: prepare(sock, 60.0)))
    return [
        Stage("TCP: open, a byte each way, close (both ends)", 3, best(timed(open_and_close))),
        Stage("options of a socket", 4, options),
        Stage("hand-over of a connection to an element", 2, best(timed(hand_over))),
        Stage("TLS object", 2, made),
        Stage("handshake with a ticket, at the gateway that dials", 1, with_ticket[0]),
        Stage("handshake with a ticket, at the other", 1, with_ticket[1]),
        Stage("instead, without a ticket: handshake, at the gateway that dials", 0, with_certificates[0]),
        Stage("instead, without a ticket: handshake, at the other", 0, with_certificates[1]),
        Stage("without a ticket: names in both certificates, and a ticket", 0, verified),
    ]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Print the processor time of a new connection through two gateways by stage, in microseconds."""
    show(costs(), "us in all")


if __name__ == "__main__":
    main()
