"""Strangers at a listener cannot fill the log: their actions are counted, and logged as counts."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from link_in_memory import Peer
from log_lines import logged
from OpenSSL import SSL
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from scistream.links.admission import AdmissionController, Bounds
from scistream.links.tls_links import log_refusal
from scistream.logs import MOST_COUNTED
from scistream.protocol.codec import MAX_FIRST_LINE
from scistream.tls.explain import RefusedCertificate


class Listener:
    """A listener with many connections."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.admission_controller = AdmissionController(self.clock, Bounds(), "the listener", known_refusal=30.0)

    def comes(self, host: str, does: str) -> None:
        """Connect from `host` and misbehave."""
        admission = self.admission_controller.admit(host)
        if admission is None:
            return
        if does == "shows no certificate that counts":

            def refuse(_connection: Any) -> None:
                raise SSL.Error([("", "", f"{host} is refused")])

            peer = Peer(plain_peer=None, authenticate=refuse, admission=admission)
            peer.link.handshakeCompleted()
        else:
            peer = Peer(plain_peer=None, authenticate=lambda _connection: None, admission=admission)
            peer.link.handshakeCompleted()
        if does == "says rubbish":
            peer.says(f"rubbish from {host}".encode())
        elif does == "says too long a line":
            peer.says(b"x" * (MAX_FIRST_LINE + 1))
        elif does == "is silent":
            peer.clock.advance(60.0)
        elif does == "has a certificate that is refused":
            log_refusal(peer.link, Failure(RefusedCertificate(f"{host} is not known", "it is not known")))
        peer.goes()

    def refuses_certificate(self, sentence: str, reason: str) -> None:
        """End a handshake because the certificate of a stranger is refused."""
        admission = self.admission_controller.admit("10.0.0.1")
        assert admission is not None
        peer = Peer(plain_peer=None, authenticate=lambda _connection: None, admission=admission)
        log_refusal(peer.link, Failure(RefusedCertificate(sentence, reason)))
        peer.goes()


CERTIFICATE_REASONS = ["it has expired", "it was revoked"]
MISDEEDS = [
    "shows no certificate that counts",
    "says rubbish",
    "says too long a line",
    "is silent",
    "has a certificate that is refused",
]
KINDS = 12 + MOST_COUNTED
"""The lines that the listener can cause."""

visitors = st.lists(
    st.tuples(st.integers(0, 2**16 - 1), st.sampled_from(MISDEEDS), st.integers(1, 30), st.floats(0.0, 20.0)),
    max_size=40,
)


@given(visitors)
def test_the_log_stays_short_under_any_actions_of_strangers_at_a_listener(
    visitors: list[tuple[int, str, int, float]],
) -> None:
    listener = Listener()
    with logged() as lines:
        for number, does, times, pause in visitors:
            for _ in range(times):
                listener.comes(f"10.0.{number // 256}.{number % 256}", does)
            listener.clock.advance(pause)
        minutes = int(listener.clock.seconds() / 60) + 1
        listener.admission_controller.stop()
    assert len(lines) <= KINDS * 5 * minutes, lines
    assert all(line.startswith("the listener ") for line in lines)
    assert listener.clock.getDelayedCalls() == []


@pytest.mark.parametrize("first", CERTIFICATE_REASONS)
@pytest.mark.parametrize("second", CERTIFICATE_REASONS)
def test_another_reason_of_the_same_refusal_is_told_at_once_and_the_same_one_is_counted(
    first: str, second: str
) -> None:
    listener = Listener()
    with logged() as lines:
        for number, reason in enumerate([first, first, second]):
            listener.refuses_certificate(f"number {number}: {reason}", reason)
        assert len(lines) == (1 if first == second else 2)
        assert all(reason in " ".join(lines) for reason in (first, second))
        listener.admission_controller.stop()
    assert "number 2" in lines[-1] or "number 1" in lines[-1], "what was counted is told in the end"


def test_an_address_that_is_refused_for_another_reason_is_told_of_at_once() -> None:
    clock = Clock()
    admission_controller = AdmissionController(
        clock, Bounds(unproven_per_address=1, failures=2), "the listener", known_refusal=30.0
    )
    with logged() as lines:
        admission = admission_controller.admit("10.0.0.1")
        assert admission is not None
        assert admission_controller.admit("10.0.0.1") is None
        assert admission_controller.admit("10.0.0.1") is None
        assert len(lines) == 1
        assert "unproven_per_address" in lines[0]
        admission.failed("a bad line")
        admission.closed()
        again = admission_controller.admit("10.0.0.1")
        assert again is not None
        again.failed("another one")
        again.closed()
        assert admission_controller.admit("10.0.0.1") is None
        assert "too many failures" in lines[-1]
        admission_controller.stop()


def test_thousands_of_failed_handshakes_are_a_few_lines_that_say_how_many_and_from_where() -> None:
    listener = Listener()
    with logged() as lines:
        for number in range(3000):
            listener.comes(f"10.0.{number // 256}.{number % 256}", "shows no certificate that counts")
        listener.admission_controller.stop()
    assert len(lines) == 5
    counts = [line.partition(" so far, ")[0].rpartition("; ")[2] for line in lines]
    assert counts == ["1", "10", "100", "1000", "3000"]
    assert "10.0.11.183 is refused" in lines[-1]
