"""Tickets: two gateways that have shown each other their certificates need not do so for each further connection.

A handshake with certificates takes four times as much processor time as one without. The gateway that is dialled
therefore gives the other one a ticket, in Connect or in its answer, over each connection on which certificates were
shown. The ticket is a secret of that connection (RFC 8446, section 7.5), sealed with a key that only the elements of
this gateway have. In a later handshake under the same credentials it stands for both certificates. The keys of each
connection are fresh nevertheless. Tickets end with the credentials, with the first certificate that expires, and after
`timing.TICKET`.
"""

from __future__ import annotations

import os
import struct
import time
from base64 import b64decode, b64encode
from collections.abc import Callable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from OpenSSL import SSL

from scistream import timing
from scistream.protocol.messages import MAX_CHANNELS
from scistream.s2ds.relay import openssl

_LABEL = b"EXPORTER-scistream-data-ticket"
_NONCE = 12
_UNTIL = struct.Struct(">d")
_LENGTH = _NONCE + openssl.SECRET + _UNTIL.size + 16
_GROUP = b"X25519"
"""The key exchange of a handshake with a ticket.

A computer that breaks it still needs the secret of the ticket, which was agreed on in a handshake with OpenSSL's first
choice, today a hybrid with ML-KEM that takes three times as long.
"""


class GivenTickets:
    """The tickets that a gateway gives to those that dial it, under one generation of a stream's credentials.

    :param context: the context of the connections, which accepts these tickets from now on.
    :param key: 16 bytes that only the elements of this gateway know.
    :param clock: the wall clock in seconds, by which certificates expire.
    """

    def __init__(self, context: SSL.Context, key: bytes, clock: Callable[[], float] = time.time) -> None:
        self._aead = AESGCM(key)
        self._clock = clock
        openssl.accept_secrets(context, self._open, _LENGTH)

    def give(self, connection: SSL.Connection) -> str:
        """Return a ticket for a peer that is verified; empty if it has not shown its certificate on this connection."""
        until = _valid_until(connection, self._clock())
        if not until:
            return ""
        nonce = os.urandom(_NONCE)
        sealed = self._aead.encrypt(nonce, _secret_of(connection) + _UNTIL.pack(until), _LABEL)
        return b64encode(nonce + sealed).decode()

    def _open(self, ticket: bytes) -> bytes | None:
        """Return the secret in a ticket, or None if it is none of these or not valid any more."""
        if len(ticket) != _LENGTH:
            return None
        try:
            opened = self._aead.decrypt(ticket[:_NONCE], ticket[_NONCE:], _LABEL)
        except InvalidTag:
            return None
        (until,) = _UNTIL.unpack(opened[openssl.SECRET :])
        return opened[: openssl.SECRET] if self._clock() < until else None


class KeptTickets:
    """The tickets that a gateway has from those that it dials, the last one for each name that it has asked for.

    :param context: the context of the connections.
    :param clock: the wall clock in seconds.
    """

    def __init__(self, context: SSL.Context, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._kept: dict[bytes, tuple[bytes, bytes, float]] = {}
        self._failed: dict[bytes, float] = {}
        openssl.offer_secrets(context, self._find)

    def keep(self, connection: SSL.Connection, ticket: str) -> None:
        """Keep a ticket of a peer that is verified, if it has shown its certificate on this connection."""
        name, now = connection.get_servername() or b"", self._clock()
        until = _valid_until(connection, now)
        try:
            identity = b64decode(ticket, validate=True)
        except ValueError:
            return
        if identity and until and self._failed.get(name, 0.0) <= now and len(self._kept) < MAX_CHANNELS:
            self._kept[name] = identity, _secret_of(connection), until

    def use(self, connection: SSL.Connection) -> bool:
        """Prepare a handshake for a ticket. Return False if there is none."""
        if self._find(connection.get_servername() or b"") is None:
            return False
        openssl.set_group(connection, _GROUP)
        return True

    def forget(self, connection: SSL.Connection) -> None:
        """Show certificates for a while, since the other gateway has not accepted a ticket."""
        name = connection.get_servername() or b""
        if self._kept.pop(name, None) is not None:
            self._failed[name] = self._clock() + timing.TICKET_AGAIN

    def _find(self, name: bytes) -> tuple[bytes, bytes] | None:
        identity, secret, until = self._kept.get(name, (b"", b"", 0.0))
        return (identity, secret) if self._clock() < until else None


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


def _valid_until(connection: SSL.Connection, now: float) -> float:
    """Return until when a ticket is valid; 0.0 if the peer has not shown its certificate on this connection."""
    if openssl.is_resumed(connection):
        return 0.0
    path = connection.get_verified_chain(as_cryptography=True)
    return min([now + timing.TICKET, *(one.not_valid_after_utc.timestamp() for one in path)]) if path else 0.0
