"""How many connections of a stream have large receive windows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scistream.s2ds.relay import windows
from scistream.s2ds.relay.windows import FEWEST, Windows, most_wide


class Connection:
    def __init__(self) -> None:
        self.is_wide = False

    def widen(self) -> None:
        self.is_wide = True

    def hold(self) -> None:
        assert not self.is_wide


@given(st.integers(1, 5), st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=60))
def test_never_more_than_allowed_are_wide_and_none_waits_while_there_is_room(
    most: int, steps: list[tuple[bool, int]]
) -> None:
    asked, living = Windows(most), dict[int, Connection]()
    for asks, number in steps:
        if asks and number not in living:
            living[number] = Connection()
            asked.ask(living[number])
        elif not asks and number in living:
            asked.ended(living.pop(number))
        wide = sum(one.is_wide for one in living.values())
        assert wide == min(most, len(living))


@pytest.mark.parametrize(
    ("settings", "elements", "most"),
    [
        ({"tcp_mem": ["1", "400000", "9"], "tcp_rmem": ["1", "2", "6291456"]}, 2, 400000 * 4096 // 8 // 2 // 6291456),
        ({"tcp_mem": ["1", "1000", "9"], "tcp_rmem": ["1", "2", "6291456"]}, 2, FEWEST),
        ({"tcp_mem": [], "tcp_rmem": []}, 1, FEWEST),
    ],
)
def test_the_memory_of_the_kernel_says_how_many(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, list[str]], elements: int, most: int
) -> None:
    monkeypatch.setattr(windows, "_setting", settings.__getitem__)
    monkeypatch.setattr(windows.os, "sysconf", lambda _name: 4096)
    assert most_wide(elements) == most
