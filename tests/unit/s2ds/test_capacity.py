"""What a gateway promises, and how a bucket keeps a stream to its rate."""

import pytest

from scistream.protocol.errors import StreamError
from scistream.s2ds.capacity import Capacity
from scistream.s2ds.relay.token_bucket import BYTES_PER_MBIT, TokenBucket


class Clock:
    """Seconds, by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def drain(bucket: TokenBucket) -> int:
    taken = 0
    while granted := bucket.take(1 << 20):
        taken += granted
    return taken


def test_capacity_is_promised_up_to_its_total_and_no_further() -> None:
    capacity = Capacity(1000.0)
    capacity.reserve(600.0)
    capacity.reserve(400.0)
    with pytest.raises(StreamError) as refused:
        capacity.reserve(1.0)
    assert refused.value.code == "no-capacity"
    assert "1 Mbit/s requested" in refused.value.msg
    assert "0 of this gateway's 1000" in refused.value.msg
    capacity.release(400.0)
    assert capacity.free == 400.0


def test_a_refused_reservation_takes_nothing() -> None:
    capacity = Capacity(10.0)
    with pytest.raises(StreamError):
        capacity.reserve(10.5)
    assert capacity.free == 10.0


def test_rounding_of_fractions_does_not_cost_the_last_share() -> None:
    capacity = Capacity(1.0)
    for _ in range(10):
        capacity.reserve(0.1)
    for _ in range(10):
        capacity.release(0.1)
    assert capacity.free == 1.0


@pytest.mark.parametrize("rate", [0.5, 8.0, 80.0, 10_000.0])
def test_a_bucket_lets_through_its_rate_over_time(rate: float) -> None:
    clock = Clock()
    bucket = TokenBucket(rate, clock)
    drain(bucket)  # what may be sent at once after a rest
    sent = 0
    start = clock.now
    while clock.now < start + 20.0:
        clock.now += bucket.wait() + 1e-6
        sent += drain(bucket)
    assert sent == pytest.approx(rate * BYTES_PER_MBIT * (clock.now - start), rel=0.01)


def test_a_rest_does_not_save_up_more_than_the_burst() -> None:
    clock = Clock()
    bucket = TokenBucket(80.0, clock)
    first = drain(bucket)
    clock.now += 3600.0
    assert drain(bucket) == first == 80.0 * BYTES_PER_MBIT * 0.05


def test_an_empty_bucket_names_a_time_at_which_it_has_something() -> None:
    clock = Clock()
    bucket = TokenBucket(80.0, clock)
    drain(bucket)
    assert bucket.take(1) == 0
    clock.now += bucket.wait() + 1e-6
    assert bucket.wait() == 0.0
    assert bucket.take(1 << 20) > 10_000


def test_what_is_given_back_can_be_taken_again() -> None:
    bucket = TokenBucket(8.0, Clock())
    taken = bucket.take(200_000)
    bucket.give_back(taken)
    assert 8.0 * BYTES_PER_MBIT * 0.05 - drain(bucket) < 2000, "all but a crumb"
