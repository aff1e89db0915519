"""Which congestion control a gateway's connections get: a default takes what there is, a wish is met or refused."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scistream.s2ds.relay.leg import congestion_control
from scistream.s2ds.settings import LegSettings

AVAILABLE = Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text().split()
ALLOWED = Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control").read_text().split()
NAMES = st.sampled_from([*AVAILABLE, "cubic", "bbr", "dctcp"]) | st.from_regex(r"[a-z]{1,15}", fullmatch=True)


def can_be_had(name: str) -> bool:
    with socket.socket() as sock:
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())
        except OSError:
            return False
        return True


@given(NAMES)
def test_what_suits_is_taken_by_default_where_it_can_be_had(name: str) -> None:
    assert congestion_control(LegSettings().congestion, suited=name) == (name if can_be_had(name) else "")


@given(NAMES)
def test_a_name_that_was_written_is_taken_or_refused_with_what_is_allowed(name: str) -> None:
    if can_be_had(name):
        assert congestion_control(name, suited="reno") == name
    else:
        with pytest.raises(ValueError, match=f"{name}.*choose one of {', '.join(ALLOWED)},"):
            congestion_control(name, suited="reno")


def test_an_empty_text_is_what_the_system_does() -> None:
    assert congestion_control("", suited="reno") == ""
