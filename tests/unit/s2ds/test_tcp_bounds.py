"""A gateway says once when TCP's buffers keep a stream below its rate, and what would change that."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import LogLevel, capturedLogs

from scistream.protocol.messages import CONS, MAX_NOTICE, PROD, ChannelFigures, Role
from scistream.s2ds.tcp_bounds import BoundCheck, TcpBuffers, tcp_buffers

MIB = 1024 * 1024
SMALL = TcpBuffers(receive=6 * MIB, send=4 * MIB, receive_by_request=212992)
LARGE = TcpBuffers(receive=512 * MIB, send=512 * MIB, receive_by_request=512 * MIB)


def figures(
    to_consumer: int = 0, to_producer: int = 0, connections: int = 1, rtt_ms: float = 100.0, channel: int = 0
) -> ChannelFigures:
    return ChannelFigures(
        channel=channel,
        bytes_to_consumer=to_consumer,
        bytes_to_producer=to_producer,
        connections=connections,
        rtt_ms=rtt_ms,
    )


def notices(role: Role, found: list[ChannelFigures], rate: float, buffers: TcpBuffers, held: int = 0) -> list[str]:
    check = BoundCheck(("uid", role), rate, lambda: buffers)
    check.look(found, lambda _channel: held)
    return check.notices


@pytest.mark.parametrize(
    ("role", "found", "setting", "bound"),
    [
        (CONS, figures(to_consumer=64 * MIB), "tcp_rmem", 3 * MIB * 8e-6 / 0.1),
        (PROD, figures(to_producer=64 * MIB), "tcp_rmem", 3 * MIB * 8e-6 / 0.1),
        (PROD, figures(to_consumer=64 * MIB), "tcp_wmem", 4 * MIB * 8e-6 / 0.1),
        (CONS, figures(to_producer=64 * MIB), "tcp_wmem", 4 * MIB * 8e-6 / 0.1),
        (CONS, figures(to_consumer=64 * MIB, connections=3), "tcp_rmem", 3 * 3 * MIB * 8e-6 / 0.1),
    ],
)
def test_a_buffer_that_bounds_the_rate_is_told_with_the_value_that_suffices(
    role: Role, found: ChannelFigures, setting: str, bound: float
) -> None:
    (notice,) = notices(role, [found], 1000.0, SMALL)
    told = re.search(r"about ([\d.]+) Mbit/s, below the stream's 1000 Mbit/s", notice)
    assert told
    assert float(told[1]) == pytest.approx(bound, rel=0.01)
    remedy = re.search(rf'sysctl -w net\.ipv4\.{setting}="4096 \d+ (\d+)"', notice)
    assert remedy
    enough = TcpBuffers(int(remedy[1]), int(remedy[1]), 212992)
    assert not notices(role, [found], 1000.0, enough)
    assert notices(role, [found], 2000.0 if setting == "tcp_rmem" else 4000.0, enough)


@pytest.mark.parametrize(
    ("found", "rate", "buffers"),
    [
        (figures(to_consumer=64 * MIB), 1000.0, LARGE),
        (figures(to_consumer=64 * MIB), 200.0, SMALL),
        (figures(to_consumer=64 * MIB, rtt_ms=1.0), 100000.0, SMALL),
        (figures(to_consumer=64 * MIB, connections=0), 1000.0, SMALL),
        (figures(to_consumer=2 * MIB, to_producer=2 * MIB), 1000.0, SMALL),
        (figures(to_consumer=64 * MIB, to_producer=64 * MIB), 1000.0, TcpBuffers(0, 0, 0)),
    ],
    ids=["large", "low rate", "near", "no connection", "little carried", "unknown"],
)
def test_nothing_is_told_where_buffers_bound_nothing(found: ChannelFigures, rate: float, buffers: TcpBuffers) -> None:
    assert not notices(CONS, [found], rate, buffers)


def test_connections_that_get_no_large_window_are_told_with_the_memory_that_lacks() -> None:
    (notice,) = notices(CONS, [figures(to_consumer=64 * MIB, connections=4)], 5000.0, LARGE, held=4)
    assert "net.ipv4.tcp_mem" in notice


def test_a_bound_is_logged_once_and_told_until_the_end_of_the_stream() -> None:
    check = BoundCheck(("uid", CONS), 1000.0, lambda: SMALL)
    with capturedLogs() as logged:
        for carried in range(10):
            busy = [figures(to_consumer=(8 + carried) * MIB, channel=channel) for channel in range(8)]
            check.look(busy, lambda _channel: 0)
            check.look([figures(connections=0)], lambda _channel: 0)
    assert [event["log_level"] for event in logged] == [LogLevel.warn]
    assert len(check.notices) == 1
    assert check.notices[0] in (logged[0]["notice"], "")


@given(
    st.lists(
        st.builds(
            figures,
            st.integers(0, 2**62),
            st.integers(0, 2**62),
            st.integers(1, 2**31),
            st.floats(0, 1e9),
            st.integers(0, 1000),
        ),
        max_size=20,
    ),
    st.floats(0.001, 1e7),
    st.integers(0, 100),
)
def test_whatever_the_figures_are_there_are_few_short_sentences(
    found: list[ChannelFigures], rate: float, held: int
) -> None:
    told = notices(CONS, found, rate, SMALL, held)
    assert len(told) <= 3
    assert all(len(notice) <= MAX_NOTICE and notice.isprintable() for notice in told)


def test_the_kernel_says_how_large_buffers_get(tmp_path: Path) -> None:
    for name, text in (
        ("ipv4/tcp_rmem", "4096\t131072\t6291456\n"),
        ("ipv4/tcp_wmem", "4096\t16384\t4194304\n"),
        ("core/rmem_max", "212992\n"),
    ):
        file = tmp_path / "proc/sys/net" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    assert tcp_buffers(tmp_path) == SMALL
    (tmp_path / "proc/sys/net/ipv4/tcp_rmem").write_text("")
    assert tcp_buffers(tmp_path).receive == 0
