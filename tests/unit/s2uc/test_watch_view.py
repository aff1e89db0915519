"""What `s2uc watch` shows: a function of what both sides have reported, which fits every terminal."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from rich.console import Console

from scistream.protocol.messages import (
    CONS,
    PROD,
    BrokenChannel,
    ChannelFigures,
    LastError,
    PathFigures,
    ResetReason,
    Role,
    StreamStatus,
)
from scistream.s2uc import watch_view
from scistream.s2uc.rate_plot import plot
from scistream.s2uc.watch_history import SPAN, WatchHistory, WatchMoment, reason_of_end

UID = "12345678-1234-4234-8234-123456789abc"
HOSTILE = "oh\x1b[2Jno"


def side(role: Role, sent: int = 0, *, channels: int = 1, state: str = "Streaming", **more: Any) -> StreamStatus:
    figures = [
        ChannelFigures(channel=number, connections=1, bytes_to_consumer=sent // channels, rtt_ms=50.2, retransmits=3)
        for number in range(channels)
    ]
    return StreamStatus(uid=UID, role=role, state=state, figures=figures, rate=10_000.0, seconds_left=7200.0, **more)


def history(*rates: float, interval: float = 2.0, **more: Any) -> WatchHistory:
    """Return the history of a stream with these rates to the consumer, in Mbit/s, one after the other."""
    watched = WatchHistory(UID, "run 7")
    sent = 0.0
    for number, rate in enumerate([0.0, *rates]):
        sent += rate * interval / 8e-6
        watched.add(WatchMoment(number * interval, {role: side(role, round(sent), **more) for role in (PROD, CONS)}))
    return watched


def drawn(watched: WatchHistory, columns: int = 80, rows: int = 24, *, plain: bool = False) -> list[str]:
    shown = io.StringIO()
    console = Console(width=columns, height=rows, color_system=None, file=shown)
    console.print(watch_view.picture(watched, columns, rows, plain=plain))
    return shown.getvalue().splitlines()


def test_the_rate_is_what_arrived_since_the_moment_before() -> None:
    watched = history(100.0, 3000.0)
    assert watched.rate("to_consumer") == pytest.approx(3000.0)
    assert watched.rate("to_producer") == 0.0
    assert watched.rates("to_consumer", 2, 4.0) == [pytest.approx(100.0), pytest.approx(3000.0)]


def test_bytes_that_came_while_a_side_did_not_answer_are_spread_over_that_time() -> None:
    watched = WatchHistory(UID)
    watched.add(WatchMoment(0.0, {CONS: side(CONS, 0)}))
    watched.add(WatchMoment(2.0, {}, {CONS: "there was no answer"}))
    assert watched.rate("to_consumer") is None
    watched.add(WatchMoment(4.0, {CONS: side(CONS, 4_000_000)}))
    assert watched.rates("to_consumer", 4, 4.0) == [pytest.approx(8.0)] * 4


def test_a_time_before_the_first_report_has_no_rate_and_old_reports_are_dropped() -> None:
    assert history(8.0).rates("to_consumer", 2, 4.0) == [None, pytest.approx(8.0)]
    long = history(*[8.0] * 1000)
    assert long.last.at - long.moments[1].at <= SPAN
    assert None not in long.rates("to_consumer", 60, SPAN)


def test_the_plot_has_axes_with_units_and_its_columns_are_as_high_as_the_rates() -> None:
    unit, lines = plot([0.0, 500.0, 1000.0, 2000.0], 60.0, 4)
    assert unit == "Gbit/s"
    assert lines == [
        "     2 ┤   █",
        "       │   █",
        "     1 ┤  ██",
        "       │ ███",
        "     0 └────",
        "        -60 snow",
    ]
    assert plot([None, 0.5], 60.0, 4, plain=True)[0] == "kbit/s"
    assert "".join(plot([None, 0.5], 60.0, 4, plain=True)[1]).isascii()


@pytest.mark.parametrize("value", [0.0, 1e-5, 0.3, 1.0, 9.99, 10.0, 99_999.0, 5e6])
def test_a_plot_of_any_rate_stays_within_its_lines(value: float) -> None:
    _, lines = plot([value] * 30, 300.0, 5)
    assert len(lines) == 7
    assert {len(line) for line in lines[:-1]} == {38}
    assert any("█" in line or "▁" in line for line in lines[:5]) == (value > 0)


def test_the_picture_shows_states_rates_channels_and_why_connections_were_reset() -> None:
    reset = ResetReason(channel=1, cause="application", reason="a.example:7000 refused the connection", count=3)
    path = PathFigures(local="192.0.2.1", remote="198.51.100.7", up=True, connections=2, rtt_ms=50.0)
    shown = "\n".join(drawn(history(2000.0, channels=2, resets=[reset], paths=[path]), 100, 40))
    for part in (
        UID,
        "run 7",
        "Streaming",
        "Gbit/s to the consumer, now 2 Gbit/s of 10 Gbit/s reserved",
        "50.2 ms",
        "2 h",
    ):
        assert part in shown
    assert "producer, channel 1: 3 connections reset (application)" in shown
    assert "192.0.2.1 - 198.51.100.7" in shown


def test_the_picture_says_who_is_waited_for() -> None:
    watched = WatchHistory(UID)
    sides = {PROD: side(PROD, state="Listening"), CONS: side(CONS, state="Streaming", silent={"gw-2": 9.0})}
    watched.add(WatchMoment(0.0, sides))
    shown = "\n".join(drawn(watched, 120))
    assert "the producer (appctrl prod)" in shown
    assert "its gateway gw-2" in shown
    watched.add(WatchMoment(2.0, {}, {PROD: "lab.example:5000 cannot be reached"}))
    shown = "\n".join(drawn(watched, 120))
    assert "no answer" in shown
    assert "lab.example:5000 cannot be reached" in shown
    assert "unknown" in shown


SIZES = [(80, 24), (80, 12), (40, 20), (132, 50), (200, 60)]


@pytest.mark.parametrize(("columns", "rows"), SIZES)
@pytest.mark.parametrize("channels", [1, 6, 1024])
def test_the_picture_fits_the_terminal_and_says_what_it_leaves_out(columns: int, rows: int, channels: int) -> None:
    reasons = [
        ResetReason(channel=number, cause="wan", reason=f"reason {number} " + "long " * 30, count=1)
        for number in range(16)
    ]
    broken = [BrokenChannel(channel=0, reason="the WAN is cut", seconds=90.0)]
    lines = drawn(history(*[900.0] * 40, channels=channels, resets=reasons, broken=broken), columns, rows)
    assert max(map(len, lines)) <= columns
    if (columns, rows) in ((80, 24), (132, 50), (200, 60)):
        assert len(lines) <= rows
        shown = "\n".join(lines)
        assert "more reasons: `s2uc status UID` shows all" in shown
        if channels != 6:
            assert ("more channels: `s2uc status UID` shows all" in shown) is (channels > 6)


def test_a_terminal_without_unicode_gets_ascii() -> None:
    assert all(line.isascii() for line in drawn(history(5.0, 6.0), plain=True))


def test_what_a_facility_says_moves_no_cursor() -> None:
    error = LastError(code="timeout", msg=HOSTILE)
    path = PathFigures(local=HOSTILE, remote=HOSTILE)
    reset = ResetReason(channel=0, cause="wan", reason=HOSTILE, count=1)
    watched = history(5.0, last_error=error, paths=[path], resets=[reset], notices=[HOSTILE], silent={HOSTILE: 1.0})
    watched.label = HOSTILE
    texts = [*drawn(watched, 120, 50), watch_view.line(watched, "12:00:00"), *watch_view.news(None, watched.last)]
    assert "\x1b" not in "".join(texts)
    assert "oh?[2Jno" in "".join(texts)


def test_a_line_has_states_bytes_and_rates() -> None:
    reset = ResetReason(channel=0, cause="wan", reason="the WAN was cut", count=2)
    watched = history(800.0, resets=[reset])
    assert watch_view.line(watched, "12:00:00") == (
        "12:00:00  producer Streaming, consumer Streaming, 1 open, 200 MB to the consumer (800 Mbit/s), "
        "0 B to the producer (0 kbit/s)"
    )
    sentence = "channel 0: 2 connections reset (wan), last 0 s ago: the WAN was cut"
    assert watch_view.news(None, watched.last) == [f"producer, {sentence}", f"consumer, {sentence}"]
    assert watch_view.news(watched.last, watched.last) == []


def test_the_object_for_programs_is_json() -> None:
    told = json.loads(json.dumps(watch_view.fields(history(800.0), 1e9)))
    assert told["mbit"] == {"to_consumer": pytest.approx(800.0), "to_producer": 0.0}
    assert told["bytes"] == {"to_consumer": 200_000_000, "to_producer": 0}
    assert told["states"] == {"PROD": "Streaming", "CONS": "Streaming"}
    assert told["sides"]["CONS"]["figures"][0]["bytes_to_consumer"] == 200_000_000


@pytest.mark.parametrize(("code", "is_failure"), [("released", False), ("expired", True), ("gateway-failed", True)])
def test_the_reason_of_the_end_is_that_of_the_side_that_has_one(code: str, is_failure: bool) -> None:
    ended = side(CONS, state="Released", last_error=LastError(code=code, msg="so it is"))
    last = WatchMoment(0.0, {PROD: side(PROD, state="Released"), CONS: ended})
    assert last.is_over
    reason = reason_of_end(last)
    assert (reason is not None) is is_failure
    if reason is not None:
        assert (reason.code, reason.msg) == (code, "consumer side: so it is")


def test_a_stream_is_not_over_while_one_side_goes_on_or_does_not_answer() -> None:
    released = side(PROD, state="Released")
    assert not WatchMoment(0.0, {PROD: released, CONS: side(CONS)}).is_over
    assert not WatchMoment(0.0, {PROD: released}, {CONS: "there was no answer"}).is_over
    assert WatchMoment(0.0, {PROD: released}).is_over


def test_the_figures_of_a_side_that_has_released_the_stream_stay() -> None:
    watched = history(800.0)
    watched.add(
        WatchMoment(4.0, {PROD: side(PROD, state="Released"), CONS: StreamStatus(uid=UID, role=CONS, state="Released")})
    )
    assert watched.last.total("to_consumer") == 200_000_000
    assert watched.last.sides[CONS].figures[0].connections == 0
