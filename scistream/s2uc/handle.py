"""A handle of a stream: what another process needs to go on with it. It can be pickled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from scistream.protocol.address import Address
from scistream.protocol.errors import StreamError
from scistream.protocol.join_string import Join
from scistream.protocol.messages import CONS, PROD, Role
from scistream.shared_settings import canonical


@dataclass(frozen=True)
class StreamHandle:
    """The name of a stream and the addresses of both S2CS, for `Client.attach` in this process or another.

    It holds no secret unless `Stream.handle` was called with ``secrets=True``. Whoever attaches needs the certificate
    with which the stream was requested.

    :ivar uid: the UUID of the stream.
    :ivar prod: HOST:PORT of the S2CS at the producer's facility.
    :ivar cons: HOST:PORT of the S2CS at the consumer's facility.
    :ivar join: the join string of each side, or empty. These are secrets, so they are left out of the repr.
    """

    uid: str
    prod: str
    cons: str
    join: Mapping[Role, str] = field(default_factory=dict, repr=False)


def app_keys_of(handle: StreamHandle) -> dict[Role, str]:
    """Return the key of each side's application from the join strings of a handle; empty if it has none.

    :raises StreamError: `bad-message`, if a join string is damaged or belongs to another stream, side or S2CS.
    """
    keys: dict[Role, str] = {}
    servers: dict[Role, str] = {PROD: handle.prod, CONS: handle.cons}
    for role, text in handle.join.items():
        try:
            join = Join.parse(text)
            same_server = canonical(join.server) == canonical(Address.parse(servers[role]))
        except (ValueError, KeyError) as wrong:
            raise StreamError("bad-message", f"join[{role!r}] of the handle: {wrong}") from None
        if (join.uid, join.role) != (handle.uid, role) or not same_server:
            raise StreamError("bad-message", f"join[{role!r}] of the handle belongs to another stream or side")
        keys[role] = join.app_key
    return keys
