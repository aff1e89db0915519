"""Parse and format rates, times and sizes.

Configuration files, policies and options have them as ``10Gbit``, ``90s`` and ``2G``; formatted text can be
parsed again. Messages for users have other units: see the end of this module.
"""

from __future__ import annotations

import re
import time
from decimal import Decimal

from scistream.protocol.messages import MAX_LIFE, MAX_RATE

DEFAULT_RATE = 1000.0
"""The rate of a stream in Mbit/s if the user gives none."""

MIN_LIFE = 1.0
"""Seconds. A stream with a shorter life would be over before anybody could use it."""

_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:bit(?:/s)?|bps)?\Z", re.IGNORECASE)
_TIME = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|min|h|d)?\Z", re.IGNORECASE)
_SIZE = re.compile(r"(\d{1,18}(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?\Z", re.IGNORECASE)
_MBIT = {"k": 1e-3, "m": 1.0, "g": 1e3, "t": 1e6}
_SECONDS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_DECIMAL = ("B", "kB", "MB", "GB", "TB", "PB", "EB")


# -- for files and options


def parse_rate(text: str) -> float:
    """Parse ``10Gbit``, ``500Mbit`` or a plain number of Mbit/s; return Mbit/s.

    :raises ValueError: with a sentence that names the text and what is allowed.
    """
    match = _RATE.match(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a rate: write it like 10Gbit, 500Mbit, or a plain number of Mbit/s")
    rate = float(match[1]) * _MBIT[match[2].lower() or "m"]
    if not 0 < rate <= MAX_RATE:
        raise ValueError(f"{text!r} is out of range: a rate is above 0 and at most {MAX_RATE / 1e6:g} Tbit/s")
    return rate


def format_rate(mbit: float) -> str:
    """Format a rate given in Mbit/s: in Tbit or Gbit if it is a whole number of them, else in Mbit."""
    for unit, size in (("Tbit", 1e6), ("Gbit", 1e3)):
        if mbit >= size and mbit % size == 0:
            return f"{_plain(mbit / size)}{unit}"
    return f"{_plain(mbit)}Mbit"


def parse_seconds(text: str) -> float:
    """Parse ``90s``, ``15m``, ``8h``, ``2d`` or a plain number of seconds; return seconds.

    :raises ValueError: with a sentence that names the text and what is allowed.
    """
    match = _TIME.match(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a time: write it like 30s, 15m, 8h or 2d")
    seconds = float(match[1]) * _SECONDS[(match[2] or "s").lower()]
    if not 0 < seconds <= MAX_LIFE:
        raise ValueError(f"{text!r} is out of range: a time is above 0 and at most {MAX_LIFE / 86400:g}d")
    return seconds


def parse_grace(text: str) -> float:
    """Parse a time as `parse_seconds` does, or ``0s``, which stands for no time at all.

    :raises ValueError: with a sentence that names the text and what is allowed.
    """
    match = _TIME.match(text.strip())
    return 0.0 if match is not None and float(match[1]) == 0 else parse_seconds(text)


def parse_life(text: str) -> float:
    """Parse the life of a stream, or the wait for it: as `parse_seconds`, but at least `MIN_LIFE`.

    :raises ValueError: with a sentence that names the text and what is allowed.
    """
    seconds = parse_seconds(text)
    if seconds < MIN_LIFE:
        raise ValueError(
            f"{text!r} is too short: a stream would be over before it is used; write {MIN_LIFE:g}s or more"
        )
    return seconds


def format_seconds(seconds: float) -> str:
    """Format a time in the largest unit of which it is a whole number."""
    for unit in ("d", "h", "m"):
        if seconds >= _SECONDS[unit] and seconds % _SECONDS[unit] == 0:
            return f"{_plain(seconds / _SECONDS[unit])}{unit}"
    return f"{_plain(seconds)}s"


def parse_size(text: str) -> int:
    """Parse a number of bytes, with K, M, G or T for powers of 1024.

    :raises ValueError: with a sentence that names the text and what is allowed.
    """
    match = _SIZE.match(text.strip())
    if match is None or (size := int(float(match[1]) * _BYTES[match[2].lower()])) < 1:
        raise ValueError(f"{text!r} is not a size: write it like 4096, 64K, 512M or 2G")
    return size


def format_size(count: int) -> str:
    """Format a number of bytes with four digits, which is exact if it was given with at most four."""
    for unit in "TGMK":
        if count >= _BYTES[unit.lower()]:
            return f"{count / _BYTES[unit.lower()]:.4g}{unit}"
    return f"{count} bytes"


def _plain(number: float) -> str:
    """Format a number exactly, without an exponent or trailing zeros."""
    return f"{Decimal(repr(number)):f}".removesuffix(".0")


# -- for messages


def spoken_seconds(seconds: float) -> str:
    """Format a duration: ``3 days``, ``90 seconds``; at least two of a unit."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"


def short_seconds(seconds: float) -> str:
    """Format a duration for tables: ``3 d``, ``90 s``."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def spoken_size(count: int) -> str:
    """Format a number of bytes in powers of 1000, with three digits."""
    size, unit = float(count), 0
    while size >= 999.5 and unit < len(_DECIMAL) - 1:
        size, unit = size / 1000, unit + 1
    return f"{count} B" if not unit else f"{size:.3g} {_DECIMAL[unit]}"


def clock_time(seconds: float) -> str:
    """Format a time, in seconds since the epoch, as local date and time."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
