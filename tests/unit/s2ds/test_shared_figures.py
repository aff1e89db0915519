"""The memory that a gateway's elements share: figures, and the tokens of a stream's rate."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from scistream.s2ds.elements import shared_figures
from scistream.s2ds.elements.shared_figures import SharedFigures
from scistream.s2ds.relay.token_bucket import TokenBucket

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="gateways run on Linux")


@pytest.fixture
def shared() -> Iterator[SharedFigures]:
    made = SharedFigures.create(slots=4, elements=2)
    yield made
    made.close()


def test_the_figures_of_a_channel_are_the_sums_over_its_elements(shared: SharedFigures) -> None:
    for element, count in ((0, 5), (1, 7)):
        row = shared.row(2, element)
        for word in (
            shared_figures.TO_CONSUMER,
            shared_figures.TO_PRODUCER,
            shared_figures.OPEN,
            shared_figures.ACCEPTED,
            shared_figures.READY,
            shared_figures.RESET,
            shared_figures.RETRANSMITS,
        ):
            shared.words[row + word] = count
        shared.words[row + shared_figures.RTT_US] = count * 1500
        shared.words[row + shared_figures.DELIVERY] = 1_000_000
    figures = shared.figures(9, 2)
    assert (figures.channel, figures.bytes_to_consumer, figures.bytes_to_producer) == (9, 12, 12)
    assert (figures.connections, figures.accepted, figures.reset, figures.retransmits) == (12, 12, 12, 12)
    assert figures.ready == 12
    assert figures.rtt_ms == 1.5
    assert figures.delivery_mbit == 16.0
    assert shared.figures(0, 1).bytes_to_consumer == shared.figures(0, 3).bytes_to_consumer == 0


def test_bytes_beyond_32_bits_are_counted(shared: SharedFigures) -> None:
    for element, count in ((0, 2**32 - 1), (1, 2**40)):
        for word in (shared_figures.TO_CONSUMER, shared_figures.TO_PRODUCER):
            shared.words[shared.row(2, element) + word] = count
            shared.words[shared.row(2, element) + word] += 2
    figures = shared.figures(9, 2)
    assert figures.bytes_to_consumer == figures.bytes_to_producer == 2**32 + 2**40 + 3


def test_a_cleared_slot_keeps_nothing_of_its_former_owner(shared: SharedFigures) -> None:
    for slot in range(4):
        for element in range(2):
            shared.words[shared.row(slot, element) + shared_figures.TO_CONSUMER] = 1
        shared.tokens(slot, 1).put(3.0, 4.0)
    shared.clear(1)
    assert [shared.figures(0, slot).bytes_to_consumer for slot in range(4)] == [2, 0, 2, 2]
    assert [shared.tokens(slot, 1).get() for slot in range(4)] == [(3.0, 4.0), (0.0, 0.0), (3.0, 4.0), (3.0, 4.0)]


OTHER = """
import sys
from scistream.s2ds.elements.shared_figures import SharedFigures
shared = SharedFigures(int(sys.argv[1]), 4, 2)
assert shared.tokens(1, 0).lock()
shared.words[shared.row(1, 1)] = 77
print("locked", flush=True)
sys.stdin.read()
"""


def test_another_process_sees_the_same_and_a_lock_ends_with_its_holder(shared: SharedFigures) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OTHER, str(shared.fd)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=[shared.fd],
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        assert shared.figures(0, 1).bytes_to_consumer == 77
        tokens = shared.tokens(1, 0)
        assert not tokens.lock()
        assert TokenBucket(100.0, lambda: 1.0, tokens).take(1000) == 0, "it does not wait for the lock"
        assert shared.tokens(1, 1).lock(), "each direction has a lock of its own"
        os.kill(other.pid, signal.SIGKILL)
        other.wait(60)
        assert tokens.lock()
        tokens.unlock()
        assert TokenBucket(100.0, lambda: 1.0, tokens).take(1000) == 1000


def test_two_buckets_with_one_store_let_through_the_rate_of_one(shared: SharedFigures) -> None:
    now = [100.0]
    buckets = [TokenBucket(8.0, lambda: now[0], shared.tokens(0, 0)) for _ in range(2)]
    while any(bucket.take(65536) for bucket in buckets):
        pass  # the first burst
    taken = 0
    for _ in range(1000):
        now[0] += 0.01
        while granted := sum(bucket.take(65536) for bucket in buckets):
            taken += granted
    assert taken == pytest.approx(10.0 * 1_000_000, rel=0.02)
