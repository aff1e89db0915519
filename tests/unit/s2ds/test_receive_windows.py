"""How many connections have large receive windows: of an element, of a stream, and of a user's streams."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scistream.resources import tcp_memory
from scistream.s2ds.relay import receive_windows
from scistream.s2ds.relay.receive_windows import FEWEST, StreamWindows, Windows, most_wide
from scistream.s2ds.settings import OWNER_SHARE

OWNERS = ["ada", "ada", "ada", "bob", "", ""]
"""Of six streams."""


class Connection:
    def __init__(self, stream: int) -> None:
        self.stream = stream
        self.is_wide = False

    def widen(self) -> None:
        self.is_wide = True

    def hold(self) -> None:
        assert not self.is_wide


@given(st.integers(1, 5), st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=60))
def test_never_more_than_allowed_are_wide_and_none_waits_while_there_is_room(
    most: int, steps: list[tuple[bool, int]]
) -> None:
    alone = Windows(most).of_stream("")
    asked, living = alone, dict[int, Connection]()
    for asks, number in steps:
        if asks and number not in living:
            living[number] = Connection(0)
            asked.ask(living[number])
        elif not asks and number in living:
            asked.ended(living.pop(number))
        wide = sum(one.is_wide for one in living.values())
        assert wide == min(most, FEWEST, len(living))


@given(
    st.integers(FEWEST, 60),
    st.lists(st.tuples(st.booleans(), st.integers(0, len(OWNERS) - 1), st.integers(0, 30)), max_size=200),
)
def test_no_stream_and_no_user_has_all_large_windows_and_others_get_one(
    most: int, steps: list[tuple[bool, int, int]]
) -> None:
    everywhere = Windows(most)
    streams: list[StreamWindows] = [everywhere.of_stream(owner) for owner in OWNERS]
    living: dict[tuple[int, int], Connection] = {}
    for asks, stream, number in steps:
        before = Counter(one.stream for one in living.values() if one.is_wide)
        if asks and (stream, number) not in living:
            living[stream, number] = Connection(stream)
            streams[stream].ask(living[stream, number])
        elif not asks and (stream, number) in living:
            streams[stream].ended(living.pop((stream, number)))
        by_stream = Counter(one.stream for one in living.values() if one.is_wide)
        assert by_stream.total() <= most
        for one, count in by_stream.items():
            assert count <= max(FEWEST, most // 4)
            if count > before[one] and OWNERS[one]:  # it has got one more: its owner did not have too many before
                owned = sum(by_stream[other] for other, owner in enumerate(OWNERS) if owner == OWNERS[one]) - 1
                left = most - by_stream.total() + 1
                assert owned == 0 or owned * (100 - OWNER_SHARE) < left * OWNER_SHARE
        if by_stream.total() < most:
            waiting = {one.stream for one in living.values() if not one.is_wide}
            owners = {OWNERS[one] for one, count in by_stream.items() if count}
            assert all(by_stream[one] or OWNERS[one] in owners - {""} for one in waiting)


def test_one_user_with_many_streams_leaves_large_windows_to_others() -> None:
    everywhere = Windows(40)
    greedy = [everywhere.of_stream("ada") for _ in range(10)]
    hers = [Connection(number) for number in range(10) for _ in range(20)]
    for one in hers:
        greedy[one.stream].ask(one)
    assert sum(one.is_wide for one in hers) == 40 * OWNER_SHARE // 100
    his = Connection(0)
    everywhere.of_stream("bob").ask(his)
    assert his.is_wide


def test_a_place_that_one_stream_gives_back_goes_to_another_that_waits() -> None:
    everywhere = Windows(4)
    first, second, third = (everywhere.of_stream("") for _ in range(3))
    wide = [Connection(0) for _ in range(4)]
    for one in wide:
        first.ask(one)
    waits = [Connection(1), Connection(1), Connection(2), Connection(2)]
    for stream, one in zip((second, second, third, third), waits, strict=True):
        stream.ask(one)
    first.ended(wide[0])
    first.ended(wide[1])
    assert sorted(one.stream for one in waits if one.is_wide) == [1, 2]
    everywhere.forget(third)
    first.ended(wide[2])
    assert [one.is_wide for one in waits] == [True, True, True, False]


@pytest.mark.parametrize(
    ("memory", "window", "elements", "most"),
    [
        (400000 * 4096, "4096 131072 6291456", 2, 400000 * 4096 // 2 // 2 // 6291456),
        (1000 * 4096, "4096 131072 6291456", 2, FEWEST),
        (400000 * 4096, "", 1, FEWEST),
    ],
)
def test_the_memory_of_the_kernel_says_how_many(
    monkeypatch: pytest.MonkeyPatch, memory: int, window: str, elements: int, most: int
) -> None:
    monkeypatch.setattr(receive_windows, "tcp_memory", lambda: memory)
    monkeypatch.setattr(Path, "read_text", lambda _self: window)
    assert most_wide(elements) == most


def test_the_kernel_says_how_much_memory_tcp_has_or_it_is_what_linux_takes_by_itself(tmp_path: Path) -> None:
    page = os.sysconf("SC_PAGE_SIZE")
    told = tmp_path / "proc/sys/net/ipv4/tcp_mem"
    told.parent.mkdir(parents=True)
    told.write_text("10 20 30")
    assert tcp_memory(tmp_path) == 20 * page
    told.write_text("")
    assert tcp_memory(tmp_path) > 2**20
