"""Rates, times and sizes as text: what is written is read back as the same value."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scistream.protocol.messages import MAX_LIFE, MAX_RATE
from scistream.units import (
    format_rate,
    format_seconds,
    format_size,
    parse_rate,
    parse_seconds,
    parse_size,
    short_seconds,
    spoken_seconds,
    spoken_size,
)


@given(st.floats(0, MAX_RATE, exclude_min=True) | st.integers(1, int(MAX_RATE)).map(float))
def test_a_rate_that_is_written_is_read_back(mbit: float) -> None:
    assert parse_rate(format_rate(mbit)) == mbit


@given(st.floats(0, MAX_LIFE, exclude_min=True) | st.integers(1, int(MAX_LIFE)).map(float))
def test_a_time_that_is_written_is_read_back(seconds: float) -> None:
    assert parse_seconds(format_seconds(seconds)) == seconds


@given(st.integers(2**10, 2**50))
def test_a_size_that_is_written_is_read_back_to_four_digits(count: int) -> None:
    assert parse_size(format_size(count)) == pytest.approx(count, abs=count * 5e-4 + 1)


@given(st.integers(1, 1000), st.sampled_from("KMGT"))
def test_a_size_of_few_digits_is_read_back_exactly(number: int, unit: str) -> None:
    count = parse_size(f"{number}{unit}")
    assert parse_size(format_size(count)) == count


@given(st.sampled_from([parse_rate, parse_seconds, parse_size]), st.text("0123456789.kKmMgGtTsbhdi/p -", max_size=8))
def test_no_text_has_two_readings(parse: type, text: str) -> None:
    """What is read can be written, and then means the same."""
    write = {parse_rate: format_rate, parse_seconds: format_seconds, parse_size: format_size}[parse]
    try:
        value = parse(text)
    except ValueError:
        return
    if parse is parse_size and value >= 2**10:
        assert parse(write(value)) == pytest.approx(value, rel=5e-4, abs=1)
    elif parse is not parse_size:
        assert parse(write(value)) == value


def test_a_round_trip_time_may_be_in_milliseconds() -> None:
    assert [parse_seconds(text) for text in ("50ms", "0.5 MS", "1m", "1min")] == [0.05, 0.0005, 60.0, 60.0]


def test_values_are_written_in_the_largest_unit_of_which_they_are_whole() -> None:
    assert [format_rate(mbit) for mbit in (1e-6, 0.5, 999.0, 1000.0, 1500.0, 1e6, 1e7)] == [
        "0.000001Mbit",
        "0.5Mbit",
        "999Mbit",
        "1Gbit",
        "1500Mbit",
        "1Tbit",
        "10Tbit",
    ]
    assert [format_seconds(seconds) for seconds in (0.5, 1.5, 90.0, 5400.0, 86400.0)] == [
        "0.5s",
        "1.5s",
        "90s",
        "90m",
        "1d",
    ]


def test_people_are_told_in_units_of_which_there_are_two() -> None:
    spans = (0.0, 119.0, 120.0, 7199.0, 7200.0, 172799.0, 172800.0)
    assert [spoken_seconds(span) for span in spans] == [
        "0 seconds",
        "119 seconds",
        "2 minutes",
        "120 minutes",
        "2 hours",
        "48 hours",
        "2 days",
    ]
    assert [short_seconds(span) for span in spans] == ["0 s", "119 s", "2 min", "120 min", "2 h", "48 h", "2 d"]
    assert [spoken_size(count) for count in (0, 999, 1000, 999_600, 10**20)] == [
        "0 B",
        "999 B",
        "1 kB",
        "1 MB",
        "100 EB",
    ]
