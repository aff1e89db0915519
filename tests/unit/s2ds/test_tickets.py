"""Tickets: what stands for the certificates of two gateways, for how long, and what does not."""

from __future__ import annotations

import time
from base64 import b64decode, b64encode
from dataclasses import dataclass, field
from uuid import uuid4

import pytest
from cryptography import x509
from cryptography.hazmat.bindings.openssl.binding import Binding
from log_lines import logged
from OpenSSL import SSL

from scistream import timing
from scistream.protocol.messages import CONS, MAX_CHANNELS, PROD, Role
from scistream.s2ds.relay.openssl import group_of, is_resumed, set_groups
from scistream.s2ds.relay.tickets import (
    GivenTickets,
    KeptTickets,
    Moment,
    _Ticket,
    keep_ticket,
    ticket_for,
    tickets_for,
)
from scistream.s2uc.stream_certificates import issue_credentials
from scistream.tls.files import CertificateError
from scistream.tls.stream_channels import Credentials, StreamSecret, server_name, verify_peer
from support.memory_tls import Joined, join, say

HYBRID = "X25519MLKEM768"


@dataclass
class Gateways:
    """Two gateways of a stream, of which one dials the other, and the time at each."""

    dialler: Role = CONS
    uid: str = field(default_factory=lambda: str(uuid4()))
    now: float = 0.0
    """Seconds from the present."""
    dialled_now: float = 0.0
    """The same at the gateway that is dialled."""
    wall: float = 0.0
    """Seconds by which the clock of each machine is set forward."""

    def __post_init__(self) -> None:
        self.dialled: Role = PROD if self.dialler == CONS else CONS
        secrets = {role: StreamSecret() for role in (PROD, CONS)}
        bundles = issue_credentials(self.uid, 1, 3600.0, {role: secret.csr for role, secret in secrets.items()})
        self.credentials = {role: secret.credentials(bundles[role], self.uid, role) for role, secret in secrets.items()}
        self.client = self.credentials[self.dialler].context(dials=True)
        self.server = self.credentials[self.dialled].context(dials=False)
        self.kept = KeptTickets(self.client, lambda: self.moment(self.now))
        self.given = self.another_element(self.server, self.credentials[self.dialled])

    def another_element(self, server: SSL.Context, credentials: Credentials) -> GivenTickets:
        return GivenTickets(server, credentials.ticket_key, lambda: self.moment(self.dialled_now))

    def moment(self, seconds: float) -> Moment:
        return Moment(time.monotonic() + seconds, time.time() + seconds + self.wall)

    def name(self, channel: int = 0) -> bytes:
        return server_name(self.uid, channel, self.dialled).encode()

    def meet(self, channel: int = 0, server: SSL.Context | None = None) -> Joined:
        """Open a connection, verify both ends, and pass bytes both ways."""
        ends = self.shake_hands(channel, server)
        assert ends.done
        assert is_resumed(ends.server) == is_resumed(ends.client)
        for end, role, dials in ((ends.server, self.dialled, False), (ends.client, self.dialler, True)):
            verify_peer(end, self.uid, channel, role, dials=dials, resumed=is_resumed(end))
        assert say(ends.client, ends.server, b"GET /") == b"GET /"
        assert say(ends.server, ends.client, b"frame") == b"frame"
        return ends

    def shake_hands(self, channel: int = 0, server: SSL.Context | None = None) -> Joined:
        """Do a handshake, with a ticket if there is one."""
        return join(server or self.server, self.client, self.name(channel), prepare=self.kept.use)

    def hand_over(self, ends: Joined) -> str:
        """Give the dialler a ticket over a connection."""
        ticket = ticket_for(self.given, ends.server)
        keep_ticket(self.kept, ends.client, ticket)
        return ticket


@pytest.mark.parametrize("dialler", [CONS, PROD])
def test_a_ticket_stands_for_the_certificates_of_both_ends_on_each_channel(dialler: Role) -> None:
    gateways = Gateways(dialler=dialler)
    first = gateways.meet()
    assert not is_resumed(first.client)
    gateways.hand_over(first)
    for _ in range(3):
        ends = gateways.meet()
        assert is_resumed(ends.server)
        assert ends.server.get_peer_certificate() is ends.client.get_peer_certificate() is None
    assert not is_resumed(gateways.meet(channel=1).client), "another channel may be at another gateway"


def test_each_connection_with_a_ticket_has_keys_of_its_own() -> None:
    gateways = Gateways()
    gateways.hand_over(gateways.meet())
    secrets = {gateways.meet().client.export_keying_material(b"EXPORTER-test", 32) for _ in range(3)}
    assert len(secrets) == 3


def test_all_elements_of_a_gateway_accept_its_tickets() -> None:
    gateways = Gateways()
    gateways.hand_over(gateways.meet())
    credentials = gateways.credentials[PROD]
    other = credentials.context(dials=False)
    tickets_for(other, credentials.ticket_key, dials=False)
    assert is_resumed(gateways.meet(server=other).client)


def test_a_ticket_of_other_credentials_is_not_accepted() -> None:
    gateways, others = Gateways(), Gateways()
    others.uid = gateways.uid
    assert others.credentials[PROD].ticket_key != gateways.credentials[PROD].ticket_key
    gateways.hand_over(gateways.meet())
    renewed = gateways.credentials[PROD].context(dials=False)
    GivenTickets(renewed, others.credentials[PROD].ticket_key)
    assert not is_resumed(gateways.meet(server=renewed).client)
    ends = gateways.shake_hands(server=others.server)
    assert not ends.done, "and its certificate is that of another stream"


def test_who_saw_a_ticket_pass_by_cannot_use_it() -> None:
    gateways = Gateways()
    ticket = gateways.hand_over(gateways.meet())
    thief = SSL.Context(SSL.TLS_CLIENT_METHOD)
    stolen = KeptTickets(thief)
    stolen._kept[gateways.name()] = _Ticket(b64decode(ticket), bytes(32), Moment(float("inf"), float("inf")))
    ends = join(gateways.server, thief, gateways.name(), prepare=stolen.use)
    assert ends.server_error is not None
    assert not ends.done


@pytest.mark.parametrize("at_both", [True, False])
def test_a_ticket_expires_whichever_clock_is_ahead(*, at_both: bool) -> None:
    gateways = Gateways()
    gateways.hand_over(gateways.meet())
    gateways.dialled_now = timing.TICKET - 10
    assert is_resumed(gateways.meet().client)
    gateways.dialled_now = timing.TICKET + 10
    if at_both:
        gateways.now = timing.TICKET + 10
    assert not is_resumed(gateways.meet().client)
    gateways.hand_over(gateways.meet())
    assert is_resumed(gateways.shake_hands().client) == at_both, (
        "a ticket has expired, and a refused one is not replaced"
    )


def test_a_ticket_is_not_used_as_long_as_the_other_gateway_accepts_it() -> None:
    gateways = Gateways()
    gateways.hand_over(gateways.meet())
    gateways.now = gateways.dialled_now = timing.TICKET_USED - 1
    assert is_resumed(gateways.meet().client)
    gateways.now = gateways.dialled_now = (timing.TICKET + timing.TICKET_USED) / 2
    ends = gateways.meet()
    assert group_of(ends.client) == HYBRID, "it has shown certificates from the beginning"


def test_the_life_of_a_ticket_does_not_depend_on_a_clock_that_is_set() -> None:
    gateways = Gateways()
    gateways.wall = 1000.0
    ends = gateways.meet()
    gateways.hand_over(ends)
    gateways.wall = -1000.0
    assert is_resumed(gateways.meet().client)
    gateways.now = timing.TICKET_USED - 1
    gateways.dialled_now = timing.TICKET + 1
    assert not is_resumed(gateways.meet().client), "at the gateway that gave it"
    gateways.now, gateways.dialled_now = timing.TICKET_USED + 1, timing.TICKET - 1
    assert group_of(gateways.meet().client) == HYBRID, "at the one that has it"
    gateways.now = gateways.dialled_now = 0.0
    gateways.wall = 1000.0
    gateways.hand_over(gateways.meet())
    gateways.kept.forget(gateways.shake_hands().client)
    gateways.wall = -1000.0
    gateways.now = timing.TICKET_AGAIN - 1
    gateways.hand_over(gateways.meet())
    assert not is_resumed(gateways.meet().client)
    gateways.now = timing.TICKET_AGAIN + 1
    gateways.hand_over(gateways.meet())
    assert is_resumed(gateways.meet().client)


def test_a_ticket_is_not_valid_for_longer_than_the_certificates(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in ("TICKET", "TICKET_USED"):
        monkeypatch.setattr(timing, limit, 1e6)
    gateways = Gateways()
    gateways.hand_over(gateways.meet())
    path = map(str.encode, (gateways.credentials[CONS].certificate, gateways.credentials[CONS].authority))
    left = min(x509.load_pem_x509_certificate(pem).not_valid_after_utc.timestamp() for pem in path) - time.time()
    for now, dialled_now, is_valid in ((-9, -9, True), (9, -9, False), (-9, 9, False)):
        gateways.now, gateways.dialled_now = left + now, left + dialled_now
        assert is_resumed(gateways.meet().client) == is_valid


def test_a_connection_with_a_ticket_gives_no_other() -> None:
    gateways = Gateways()
    gateways.hand_over(gateways.meet())
    ends = gateways.meet()
    assert is_resumed(ends.client)
    assert ticket_for(gateways.given, ends.server) == ""
    gateways.kept.keep(ends.client, b64encode(b"anything").decode())
    assert is_resumed(gateways.meet().client), "the ticket that it had is still there"


@pytest.mark.parametrize("wrong", ["", "####", "QQ==", b64encode(bytes(68)).decode(), b64encode(bytes(380)).decode()])
def test_a_ticket_that_the_other_gateway_does_not_know_costs_nothing_but_the_certificates(wrong: str) -> None:
    gateways = Gateways()
    ends = gateways.meet()
    keep_ticket(gateways.kept, ends.client, wrong)
    assert not is_resumed(gateways.meet().client)


def test_after_a_ticket_was_not_accepted_certificates_are_shown_for_a_while() -> None:
    gateways = Gateways()
    gateways.hand_over(gateways.meet())
    gateways.kept.forget(gateways.meet().client)
    again = gateways.meet()
    assert not is_resumed(again.client)
    gateways.hand_over(again)
    assert not is_resumed(gateways.meet().client)
    gateways.now = timing.TICKET_AGAIN + 1
    gateways.hand_over(gateways.meet())
    assert is_resumed(gateways.meet().client)


def test_a_ticket_that_was_not_accepted_is_forgotten_and_a_later_one_is_not() -> None:
    gateways = Gateways()
    first, second = gateways.meet(), gateways.meet()
    gateways.hand_over(first)
    old = gateways.shake_hands()
    gateways.hand_over(second)
    gateways.kept.forget(old.client)
    assert is_resumed(gateways.meet().client)


def test_a_handshake_offers_the_ticket_for_which_it_was_prepared_or_none() -> None:
    gateways = Gateways()
    first, second = gateways.meet(), gateways.meet()
    gateways.hand_over(first)
    assert not is_resumed(join(gateways.server, gateways.client, gateways.name()).client)

    def prepare(client: SSL.Connection) -> None:
        gateways.kept.use(client)
        gateways.hand_over(second)
        gateways.kept.forget(gateways.shake_hands().client)

    assert is_resumed(join(gateways.server, gateways.client, gateways.name(), prepare=prepare).client)


def test_a_handshake_without_a_ticket_does_not_forget_one_that_has_come_meanwhile() -> None:
    gateways = Gateways()
    first, second = gateways.meet(), gateways.meet()
    gateways.hand_over(first)
    assert not is_resumed(second.client)
    gateways.hand_over(second)
    assert is_resumed(gateways.meet().client)


def test_a_connection_is_not_taken_for_one_with_a_ticket_where_there_are_none() -> None:
    gateways = Gateways()
    gateways.hand_over(gateways.meet())
    ends = gateways.shake_hands()
    assert is_resumed(ends.server)
    with pytest.raises(CertificateError, match="has not shown a certificate"):
        verify_peer(ends.server, gateways.uid, 0, PROD, dials=False)


def test_the_name_of_the_channel_is_checked_with_a_ticket_too() -> None:
    gateways = Gateways()
    gateways.hand_over(gateways.meet(channel=3))
    ends = gateways.shake_hands(channel=3)
    assert is_resumed(ends.server)
    with pytest.raises(CertificateError, match="another stream or channel"):
        verify_peer(ends.server, gateways.uid, 4, PROD, dials=False, resumed=True)


# -- the exchange of keys


def test_a_handshake_with_a_ticket_exchanges_keys_with_a_fast_group() -> None:
    gateways = Gateways()
    first = SSL.Connection(gateways.client, None)
    first.set_tlsext_host_name(gateways.name())
    assert not gateways.kept.use(first), "the first one uses what OpenSSL prefers"
    gateways.hand_over(gateways.meet())
    assert gateways.kept.use(first)
    first.set_connect_state()
    hello = _output_of(first)
    assert len(hello) < 700, "with a key of ML-KEM it has more than 1,184 bytes"
    assert group_of(gateways.meet().client) == "x25519"


def test_no_ticket_comes_from_a_connection_whose_ticket_was_not_accepted() -> None:
    gateways = Gateways()
    gateways.hand_over(gateways.meet())
    renewed = gateways.credentials[PROD].context(dials=False)
    gateways.given = GivenTickets(renewed, bytes(16))
    gateways.server = renewed
    ends = gateways.meet()
    assert not is_resumed(ends.client)
    assert group_of(ends.client) == "x25519"
    assert ticket_for(gateways.given, ends.server) == "", "the gateway that was dialled gives none"
    gateways.kept.forget(ends.client)
    gateways.now = timing.TICKET_AGAIN + 1
    gateways.kept.keep(ends.client, b64encode(b"anything").decode())
    assert not gateways.kept.use(ends.client), "and the other one keeps none"


@pytest.mark.parametrize(("groups", "used"), [(b"P-256", "secp256r1"), (b"P-384:P-256", "secp384r1")])
def test_a_gateway_that_may_not_use_the_fast_group_gives_and_accepts_tickets(groups: bytes, used: str) -> None:
    gateways = Gateways()
    _allow(gateways.server, groups)
    first = gateways.meet()
    gateways.hand_over(first)
    ends = gateways.meet()
    assert is_resumed(ends.server)
    assert group_of(first.server) == group_of(ends.server) == used


def test_a_gateway_gives_no_ticket_to_one_that_does_not_allow_the_best_group() -> None:
    gateways = Gateways()
    _allow(gateways.client, b"X25519:P-256")
    assert ticket_for(gateways.given, gateways.meet().server) == ""


@pytest.mark.parametrize("groups", [b"X25519:P-257", b":"])
def test_groups_that_openssl_does_not_know_restrict_nothing_and_leave_no_error(groups: bytes) -> None:
    connection = SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD), None)
    set_groups(connection, groups)
    assert not Binding.lib.ERR_peek_error()
    connection.set_connect_state()
    assert len(_output_of(connection)) > 1184, "it has a key of ML-KEM"


# -- what is kept


def test_a_stream_with_all_its_channels_replaces_its_tickets() -> None:
    gateways = Gateways()
    gateways.hand_over(gateways.meet())
    ticket = gateways.kept._kept[gateways.name()]
    for number in range(MAX_CHANNELS):
        gateways.kept._kept[gateways.name(number)] = ticket
    gateways.hand_over(join(gateways.server, gateways.client, gateways.name()))
    assert gateways.kept._kept[gateways.name()] != ticket
    assert len(gateways.kept._kept) == MAX_CHANNELS


def test_expired_tickets_make_room_for_others() -> None:
    gateways = Gateways()
    gateways.hand_over(gateways.meet())
    ticket = gateways.kept._kept[gateways.name()]
    for number in range(MAX_CHANNELS):
        gateways.kept._kept[gateways.name(number)] = ticket
    gateways.now = timing.TICKET + 1
    gateways.hand_over(gateways.meet(channel=MAX_CHANNELS))
    assert list(gateways.kept._kept) == [gateways.name(MAX_CHANNELS)]


@pytest.mark.parametrize("end", ["client", "server"])
def test_a_fault_at_a_ticket_is_logged_and_certificates_are_shown(end: str) -> None:
    gateways = Gateways()
    gateways.hand_over(gateways.meet())
    if end == "server":
        gateways.given._aead = None  # type: ignore[assignment]
    else:
        ticket = gateways.kept._kept[gateways.name()]
        gateways.kept._kept[gateways.name()] = ticket._replace(identity=None)  # type: ignore[arg-type]
    with logged() as lines:
        assert not is_resumed(gateways.meet().client)
    assert len(lines) == 1
    assert "Failed to find the ticket of a connection" in lines[0]


def _allow(context: SSL.Context, groups: bytes) -> None:
    assert Binding.lib.SSL_CTX_set1_curves_list(context._context, groups)


def _output_of(connection: SSL.Connection) -> bytes:
    with pytest.raises(SSL.WantReadError):
        connection.do_handshake()
    return connection.bio_read(65536)
