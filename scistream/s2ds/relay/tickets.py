"""Tickets: two gateways that have shown each other their certificates need not do so for each further connection.

A handshake with certificates takes four times as much processor time as one without. The gateway that is dialled
therefore gives the other one a ticket, in Connect or in its answer, over each connection on which certificates were
shown. The ticket is a secret of that connection (RFC 8446, section 7.5), sealed with a key that only the elements of
this gateway have. In a later handshake under the same credentials it stands for both certificates. The keys of each
connection are fresh nevertheless. Tickets end with the credentials, with the first certificate that expires, and after
`timing.TICKET`.

A connection with a ticket exchanges keys with a fast group. A computer that breaks it still needs the secret of the
ticket. That was agreed on with OpenSSL's first choice, today a hybrid with ML-KEM that takes three times as long. No
ticket therefore comes from a connection with other groups, and none such goes on without its ticket.
"""

from __future__ import annotations

import os
import struct
import time
from base64 import b64decode, b64encode
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple
from weakref import WeakKeyDictionary

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from OpenSSL import SSL

from scistream import timing
from scistream.protocol.messages import MAX_CHANNELS
from scistream.s2ds.relay import openssl
from scistream.tls.contexts import tls13_context

_LABEL = b"EXPORTER-scistream-data-ticket"
_NONCE = 12
_UNTIL = struct.Struct(">dd")
_LENGTH = _NONCE + openssl.SECRET + _UNTIL.size + 16
_GROUPS = b"X25519:P-256:P-384:P-521"
"""The groups of a handshake with a ticket; the others are for gateways whose operators do not allow the first one."""


class Moment(NamedTuple):
    """A moment in seconds by two clocks.

    :param monotonic: by a clock that nobody sets, which is the same for all elements of a gateway.
    :param wall: by the clock by which certificates expire.
    """

    monotonic: float
    wall: float

    def is_before(self, end: Moment) -> bool:
        """Return True if neither clock has reached `end`."""
        return self.monotonic < end.monotonic and self.wall < end.wall


def _now() -> Moment:
    return Moment(time.monotonic(), time.time())


class _Ticket(NamedTuple):
    identity: bytes
    secret: bytes
    until: Moment


class GivenTickets:
    """The tickets that a gateway gives to those that dial it, under one generation of a stream's credentials.

    :param context: the context of the connections, which accepts these tickets from now on.
    :param key: 16 bytes that only the elements of this gateway know.
    :param clock: the present.
    """

    def __init__(self, context: SSL.Context, key: bytes, clock: Callable[[], Moment] = _now) -> None:
        self._aead = AESGCM(key)
        self._clock = clock
        self._best_group: str | None = None
        self._is_best_group_known = False
        openssl.accept_secrets(context, self._open, _LENGTH)

    def give(self, connection: SSL.Connection) -> str:
        """Return a ticket for a peer that is verified.

        Empty if it has not shown its certificate on this connection, or has not allowed the best group.
        """
        until = _valid_until(connection, self._clock(), timing.TICKET)
        if until is None or not self._has_best_group(connection):
            return ""
        nonce = os.urandom(_NONCE)
        sealed = self._aead.encrypt(nonce, _secret_of(connection) + _UNTIL.pack(*until), _LABEL)
        return b64encode(nonce + sealed).decode()

    def _has_best_group(self, connection: SSL.Connection) -> bool:
        if not self._is_best_group_known:
            self._best_group = _best_group_of(connection.get_context())
            self._is_best_group_known = True
        return openssl.group_of(connection) == self._best_group

    def _open(self, ticket: bytes) -> bytes | None:
        """Return the secret in a ticket, or None if this gateway did not give it or it has expired."""
        if len(ticket) != _LENGTH:
            return None
        try:
            opened = self._aead.decrypt(ticket[:_NONCE], ticket[_NONCE:], _LABEL)
        except InvalidTag:
            return None
        until = Moment(*_UNTIL.unpack(opened[openssl.SECRET :]))
        return opened[: openssl.SECRET] if self._clock().is_before(until) else None


class KeptTickets:
    """The tickets that a gateway has from those that it dials, the last one for each name that it has asked for.

    :param context: the context of the connections.
    :param clock: the present.
    """

    def __init__(self, context: SSL.Context, clock: Callable[[], Moment] = _now) -> None:
        self._clock = clock
        self._kept: dict[bytes, _Ticket] = {}
        self._failed: dict[bytes, float] = {}  # until when no other one is kept, by the monotonic clock
        self._used: WeakKeyDictionary[SSL.Connection, _Ticket] = WeakKeyDictionary()
        openssl.offer_secrets(context, self._find)

    def keep(self, connection: SSL.Connection, ticket: str) -> None:
        """Keep a ticket of a peer that is verified, if it has shown its certificate on this connection."""
        name, now = connection.get_servername() or b"", self._clock()
        until = _valid_until(connection, now, timing.TICKET_USED)
        if until is None or connection in self._used or now.monotonic < self._failed.get(name, 0.0):
            return
        try:
            identity = b64decode(ticket, validate=True)
        except ValueError:
            return
        if len(self._kept) >= MAX_CHANNELS:
            self._kept = {name: one for name, one in self._kept.items() if now.is_before(one.until)}
        if identity and (name in self._kept or len(self._kept) < MAX_CHANNELS):
            self._kept[name] = _Ticket(identity, _secret_of(connection), until)

    def use(self, connection: SSL.Connection) -> bool:
        """Prepare a handshake with a ticket. Return False if there is none."""
        name = connection.get_servername() or b""
        ticket = self._kept.get(name)
        if ticket is None:
            return False
        if not self._clock().is_before(ticket.until):
            del self._kept[name]
            return False
        self._used[connection] = ticket
        openssl.set_groups(connection, _GROUPS)
        return True

    def forget(self, connection: SSL.Connection) -> None:
        """Show certificates for a while, since the other gateway has not accepted the ticket of this connection."""
        name, ticket = connection.get_servername() or b"", self._used.get(connection)
        if ticket is not None and self._kept.get(name) is ticket:
            del self._kept[name]
            self._failed[name] = self._clock().monotonic + timing.TICKET_AGAIN

    def _find(self, connection: SSL.Connection) -> tuple[bytes, bytes] | None:
        ticket = self._used.get(connection)
        return (ticket.identity, ticket.secret) if ticket is not None else None


Tickets = GivenTickets | KeptTickets


def tickets_for(context: SSL.Context, key: bytes, *, dials: bool) -> Tickets:
    """Return the tickets of the connections under a context.

    :param dials: True if this gateway dials the other.
    """
    return KeptTickets(context) if dials else GivenTickets(context, key)


def ticket_for(tickets: Tickets | None, connection: SSL.Connection) -> str:
    """Return a ticket for the other gateway; empty if it needs none."""
    return tickets.give(connection) if isinstance(tickets, GivenTickets) else ""


def keep_ticket(tickets: Tickets | None, connection: SSL.Connection, ticket: str) -> None:
    """Keep a ticket that the other gateway has sent; empty if it has sent none."""
    if ticket and isinstance(tickets, KeptTickets):
        tickets.keep(connection, ticket)


def _secret_of(connection: SSL.Connection) -> bytes:
    return connection.export_keying_material(_LABEL, openssl.SECRET)


def _valid_until(connection: SSL.Connection, now: Moment, seconds: float) -> Moment | None:
    """Return until when a ticket is valid; None if the peer has not shown its certificate on this connection."""
    if openssl.is_resumed(connection):
        return None
    path = connection.get_verified_chain(as_cryptography=True)
    if not path:
        return None
    return Moment(now.monotonic + seconds, min(one.not_valid_after_utc.timestamp() for one in path))


def _best_group_of(context: SSL.Context) -> str | None:
    """Return the group on which a server under this context agrees with a client that has OpenSSL's own choice."""
    client, server = SSL.Connection(tls13_context(SSL.TLS_CLIENT_METHOD), None), SSL.Connection(context, None)
    client.set_connect_state()
    server.set_accept_state()
    try:
        for end, other in ((client, server), (server, client)) * 2:  # twice, since the server may want another key
            with suppress(SSL.WantReadError):
                end.do_handshake()
            if (group := openssl.group_of(server)) is not None:
                return group
            other.bio_write(end.bio_read(1 << 16))
    except SSL.Error:
        pass  # they have no group in common
    return None
