"""The demonstration's frames: every kind of damage is found and named."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scistream.demo.frames import HEADER_BYTES, MAX_FRAME_BYTES, FrameChecker, FrameMaker, whole_digest

CHANNELS = 3
CHANNEL = 1
LENGTH = 50


def made(count: int, channel: int = CHANNEL, length: int = LENGTH) -> list[bytes]:
    """Return the frames of one channel, the final one last."""
    maker = FrameMaker(channel, length)
    frames = [bytes(maker.data(channel + turn * CHANNELS, length)) for turn in range(count)]
    return [*frames, bytes(maker.final())]


def checked(data: bytes, chunk: int = 1 << 20, how: str = "closed") -> FrameChecker:
    """Return a checker that has received these bytes in chunks, and then the end."""
    checker = FrameChecker(CHANNEL, CHANNELS)
    while data and not checker.finished:
        space = checker.space()
        count = min(len(space), len(data), chunk)
        space[:count] = data[:count]
        checker.received(count)
        data = data[count:]
    checker.ended(how)
    return checker


def kinds(checker: FrameChecker) -> list[str]:
    return [fault.kind for fault in checker.faults]


@given(count=st.integers(0, 6), length=st.integers(1, 40), chunk=st.integers(1, 100))
def test_untouched_frames_are_faultless_however_they_are_cut_into_reads(count: int, length: int, chunk: int) -> None:
    frames = made(count, length=length)
    checker = checked(b"".join(frames), chunk)
    assert checker.faults == []
    assert (checker.frames, checker.bytes, checker.lost) == (count, count * length, 0)
    assert checker.sha256 == hashlib.sha256(b"".join(frame[HEADER_BYTES:] for frame in frames)).digest()


def test_the_maker_and_the_checker_agree_on_the_digest() -> None:
    maker = FrameMaker(CHANNEL, LENGTH)
    data = b"".join(bytes(maker.data(CHANNEL + turn * CHANNELS, LENGTH)) for turn in range(4)) + bytes(maker.final())
    assert checked(data).sha256 == maker.sha256


def test_no_two_payloads_are_the_same() -> None:
    payloads = {frame[HEADER_BYTES:] for channel in range(CHANNELS) for frame in made(20, channel)[:-1]}
    assert len(payloads) == 20 * CHANNELS


@given(data=st.data())
def test_a_flipped_bit_anywhere_is_found(data: st.DataObject) -> None:
    whole = bytearray(b"".join(made(4)))
    where = data.draw(st.integers(0, len(whole) - 1))
    whole[where] ^= 1 << data.draw(st.integers(0, 7))
    checker = checked(bytes(whole))
    assert checker.fault_count > 0
    assert checker.frames <= 4


def test_a_flipped_byte_in_a_payload_costs_one_frame_and_is_named() -> None:
    frames = made(4)
    hurt = bytearray(frames[2])
    hurt[HEADER_BYTES + 20] ^= 0xFF
    checker = checked(b"".join([*frames[:2], bytes(hurt), *frames[3:]]))
    assert kinds(checker) == ["corrupt"]
    assert checker.faults[0].text.startswith("channel 1: frame 7 is corrupt")
    assert (checker.frames, checker.corrupt, checker.lost) == (3, 1, 0)


@given(count=st.integers(1, 8), data=st.data())
def test_lost_frames_are_counted_wherever_they_were(count: int, data: st.DataObject) -> None:
    frames = made(count)
    first = data.draw(st.integers(0, count - 1))
    after = data.draw(st.integers(first + 1, count))
    checker = checked(b"".join(frames[:first] + frames[after:]))
    assert kinds(checker) == ["lost"]
    assert checker.lost == after - first
    assert checker.frames == count - checker.lost


def test_a_lost_frame_is_named_with_what_came_instead() -> None:
    frames = made(5)
    assert checked(b"".join(frames[:2] + frames[3:])).faults[0].text == (
        "channel 1: frame 7 is lost: frame 10 came instead"
    )
    assert checked(b"".join(frames[:3] + frames[5:])).faults[0].text == (
        "channel 1: frames 10 to 13 (2) are lost: the final frame says that there were 5"
    )


def test_a_repeated_frame_is_found_and_not_counted_twice() -> None:
    frames = made(4)
    checker = checked(b"".join([*frames[:3], frames[1], *frames[3:]]))
    assert [fault.text for fault in checker.faults] == ["channel 1: frame 4 came a second time"]
    assert (checker.frames, checker.repeated, checker.lost) == (4, 1, 0)
    assert checker.sha256 != checked(b"".join(frames)).sha256


def test_a_frame_that_comes_late_is_not_lost_but_still_a_fault() -> None:
    frames = made(4)
    checker = checked(b"".join([frames[0], frames[2], frames[1], *frames[3:]]))
    assert kinds(checker) == ["lost", "late"]
    assert checker.faults[1].text == "channel 1: frame 4 came after frame 7"
    assert (checker.frames, checker.lost) == (4, 0)


def test_a_late_frame_that_comes_again_is_repeated() -> None:
    frames = made(6)
    checker = checked(b"".join([frames[0], frames[4], frames[2], frames[2], *frames[5:]]))
    assert kinds(checker) == ["lost", "late", "repeated"]
    assert checker.lost == 2


def test_a_frame_of_another_channel_is_foreign() -> None:
    frames = made(2)
    checker = checked(frames[0] + made(1, channel=2)[0] + b"".join(frames[1:]))
    assert [fault.text for fault in checker.faults] == ["channel 1: frame 2 of channel 2 came here"]
    assert checker.frames == 2


@pytest.mark.parametrize(
    ("cut", "where"),
    [
        (0, "before frame 1,"),
        (10, "10 bytes into frame 1,"),
        (HEADER_BYTES, "28 bytes into frame 1,"),
        (HEADER_BYTES + LENGTH, "before frame 4,"),
        (2 * (HEADER_BYTES + LENGTH), "before frame 7,"),
    ],
)
@pytest.mark.parametrize("how", ["closed", "reset"])
def test_a_channel_that_ends_without_its_final_frame_is_truncated(cut: int, where: str, how: str) -> None:
    checker = checked(b"".join(made(2))[:cut], how=how)
    assert kinds(checker) == ["truncated"]
    assert f"the connection was {how} {where}" in checker.faults[0].text


def test_a_reset_after_the_final_frame_is_no_clean_end() -> None:
    assert kinds(checked(b"".join(made(2)), how="reset")) == ["truncated"]


def test_bytes_after_the_final_frame_are_rubbish() -> None:
    assert kinds(checked(b"".join(made(2)) + b"x")) == ["rubbish"]


def test_rubbish_ends_the_channel_at_once_and_is_shown() -> None:
    checker = checked(made(1)[0] + b"HTTP/1.1 400 Bad Request\r\n\r\n" + bytes(100))
    assert checker.finished
    assert [fault.text for fault in checker.faults] == [
        "channel 1: no frame where frame 4 should begin: 48 54 54 50 2f 31 2e 31 20 34 30 30 20 42 61 64 ..."
    ]


def test_a_frame_that_claims_to_be_huge_is_rubbish_and_costs_no_memory() -> None:
    frame = bytearray(made(1)[0])
    frame[20:24] = (MAX_FRAME_BYTES + 1).to_bytes(4, "big")
    checker = checked(bytes(frame))
    assert kinds(checker) == ["rubbish"]
    assert checker.finished


def test_a_final_frame_that_counts_too_few_is_a_fault() -> None:
    assert kinds(checked(b"".join(made(3)[:-1]) + made(2)[-1])) == ["rubbish"]


def test_frames_longer_than_the_usual_are_taken() -> None:
    length = (1 << 20) + 5
    checker = checked(b"".join(made(2, length=length)))
    assert (checker.faults, checker.bytes) == ([], 2 * length)


def test_only_the_first_faults_are_kept_but_all_are_counted() -> None:
    frame = made(1)[0]
    checker = checked(frame * 101)
    assert (len(checker.faults), checker.repeated) == (10, 100)
    assert checker.fault_count == 101


def test_the_digest_of_a_stream_depends_on_the_order_of_its_channels() -> None:
    one, two = hashlib.sha256(b"1").digest(), hashlib.sha256(b"2").digest()
    assert whole_digest([one, two]) != whole_digest([two, one])
    assert whole_digest([one, two]) == hashlib.sha256(one + two).hexdigest()


@pytest.mark.parametrize("length", [0, -1, MAX_FRAME_BYTES + 1])
def test_a_maker_refuses_a_length_that_no_checker_takes(length: int) -> None:
    with pytest.raises(ValueError, match=f"frame_bytes is {length}: "):
        FrameMaker(0, length)
