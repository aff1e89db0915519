"""Which congestion control a gateway's connections get: a default takes what there is, a wish is met or refused."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scistream.s2ds.ports import ONE_PATH
from scistream.s2ds.relay.leg import congestion_control
from scistream.s2ds.settings import LegSettings, S2DSConfig
from scistream.s2ds.start import element_settings

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


def test_a_lan_gets_cubic_and_a_wan_bbr_by_default_where_they_can_be_had() -> None:
    settings = element_settings(S2DSConfig(insecure=True), ONE_PATH)
    for name, chosen in (("cubic", settings.lan_congestion), ("bbr", settings.wan_congestion)):
        assert chosen == (name if can_be_had(name) else "")


def test_a_gateway_without_privileges_starts_with_the_defaults_on_any_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(socket.socket, "setsockopt", forbidden)
    settings = element_settings(S2DSConfig(insecure=True), ONE_PATH)
    assert (settings.lan_congestion, settings.wan_congestion) == ("", "")


def test_an_empty_text_is_what_the_system_does() -> None:
    assert congestion_control("", suited="reno") == ""
