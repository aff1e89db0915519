"""The paths over the WAN of a stream with several gateways, as one list."""

from __future__ import annotations

from scistream.protocol.messages import MAX_PATHS, PathFigures
from scistream.s2cs.path_list import one_list


def some(count: int, gateway: int, *, up: bool = True) -> list[PathFigures]:
    return [
        PathFigures(
            local=f"192.0.2.{gateway}",
            remote=f"203.0.113.{number}",
            up=up,
            connections=2 if up else 0,
            rtt_ms=50.0 if up else 0.0,
            bytes_to_consumer=1,
            failures=1,
            seconds=number,
        )
        for number in range(count)
    ]


def test_a_list_that_fits_has_every_path_with_those_that_are_up_first() -> None:
    up, down = some(3, 1), some(MAX_PATHS - 3, 2, up=False)
    assert one_list([*down, *up]) == [*up, *down]
    assert one_list([]) == []


def test_paths_without_a_place_are_the_last_one_together_so_that_no_byte_is_missing() -> None:
    together = PathFigures(local="", remote="", up=True, connections=1, rtt_ms=20.0, bytes_to_consumer=7)
    found = one_list([together, *some(MAX_PATHS, 1), *some(MAX_PATHS, 2, up=False)])
    assert len(found) == MAX_PATHS
    last = found[-1]
    assert (last.local, last.remote, last.up) == ("", "", True)
    assert (last.connections, last.rtt_ms, last.failures) == (3, 40.0, MAX_PATHS + 1)
    assert sum(one.bytes_to_consumer for one in found) == 2 * MAX_PATHS + 7
