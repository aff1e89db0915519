"""A stream over two WANs goes on over either of them, and loses no byte.

The second WAN is a veth pair between the gateways. A wrong neighbour cuts it: packets leave, and nobody takes them.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import netns
import pytest
from testbed import Testbed
from testbed_facilities import Facilities, Stream

from scistream.protocol.address import Address
from scistream.s2cs.audit.events import PathEvent, read_line
from support.applications import MIB, NOISE, how_it_ends, push
from support.requirements import missing, needs_mptcp
from support.waiting import PATIENCE, until

SECOND = {"pgw": "198.19.1.10", "cgw": "198.19.1.20"}
SECOND_V6 = {"pgw": "fd73:c150:1:99::10", "cgw": "fd73:c150:1:99::20"}
LONGEST_PAUSE = 1.5
WAN_TIMEOUT = 4.0
CONNECTIONS = 4
RATE = "64Mbit"
NARROW = 40
"""Mbit/s of each WAN that are less than `RATE`, so that both are needed: the kernel may leave one idle if not."""
NOBODY = "02:00:00:00:00:01"


@pytest.fixture(scope="module")
def two_wans() -> Iterator[Testbed]:
    """Provide a testbed of its own, with a second WAN between the gateways."""
    needs_mptcp()
    lack = netns.missing()
    if lack is not None:
        missing(lack)
    with Testbed.of_its_own() as testbed:
        pgw, cgw = testbed.namespace("pgw"), testbed.namespace("cgw")
        netns.ip(f"link add wan1 netns {pgw} type veth peer name wan1 netns {cgw}")
        for host, address in SECOND.items():
            netns.ip(
                "link set wan1 up",
                f"addr add {address}/24 dev wan1",
                f"addr add {SECOND_V6[host]}/64 dev wan1 nodad",
                namespace=testbed.namespace(host),
            )
            with netns.inside(testbed.namespace(host)):
                Path("/proc/sys/net/mptcp/stale_loss_cnt").write_text("2")  # as in conf/sysctl
        yield testbed
    assert testbed.leftovers() == []


@pytest.fixture(scope="module")
def facilities(two_wans: Testbed) -> Iterator[Facilities]:
    paths = {host: [getattr(two_wans.v4, host), second] for host, second in SECOND.items()}
    with Facilities(two_wans, paths=paths, wan_timeout=f"{WAN_TIMEOUT:g}s") as facilities:
        yield facilities


@contextmanager
def narrow(testbed: Testbed, mbit: int, delay: str = "0ms") -> Iterator[None]:
    """Let each WAN carry this many Mbit/s each way."""
    testbed.wan(("pgw", "cgw"), rate=f"{mbit}Mbit", queue="50ms", delay=delay)
    shape = f"add dev wan1 root tbf rate {mbit}mbit burst 32kb latency 50ms"
    try:
        for host in SECOND:
            tc(testbed, host, shape)
        yield
    finally:
        for host in SECOND:
            tc(testbed, host, "del dev wan1 root")
        testbed.wan(clear=True)


def cut_first(testbed: Testbed, *, cut: bool) -> None:
    testbed.wan(("pgw", "cgw"), cut=cut)


def cut_second(testbed: Testbed, *, cut: bool) -> None:
    for host, other in (("pgw", "cgw"), ("cgw", "pgw")):
        for address in (SECOND[other], SECOND_V6[other]):
            command = f"replace {address} lladdr {NOBODY} nud permanent" if cut else f"del {address}"
            netns.ip(f"neigh {command} dev wan1", namespace=testbed.namespace(host))


def carried_second(testbed: Testbed) -> int:
    """Return how many bytes the second WAN has delivered to the consumer's gateway."""
    with netns.inside(testbed.namespace("cgw")), open("/proc/thread-self/net/dev") as table:
        return next(int(line.split(":")[1].split()[0]) for line in table if line.strip().startswith("wan1:"))


def carried_first(testbed: Testbed) -> int:
    return testbed.counters().of("pgw", "cgw").delivered_bytes


def wait_for(carried: Callable[[Testbed], int], testbed: Testbed) -> None:
    """Wait until a WAN carries data, although the other one is cut."""
    begun = carried(testbed)
    until(lambda: carried(testbed) > begun + MIB, lambda: "the other WAN is not used")


def wait_for_both(testbed: Testbed) -> None:
    """Wait until each WAN carries data, of which neither could carry all."""
    begun = carried_first(testbed), carried_second(testbed)

    def is_used() -> bool:
        return carried_first(testbed) > begun[0] + 2 * MIB and carried_second(testbed) > begun[1] + 2 * MIB

    with narrow(testbed, NARROW):
        until(is_used, lambda: "one WAN is not used")


class Transfer:
    """Bytes from a producer to a consumer until `stop`, with the longest pause between two of their arrivals."""

    def __init__(self, uid: str, consumer: socket.socket, producer: socket.socket) -> None:
        self.uid = uid
        self._consumer, self._producer = consumer, producer
        self.count, self.pause, self.stopped = 0, 0.0, False

    def send(self) -> str:
        digest = hashlib.sha256()
        while not self.stopped:
            self._producer.sendall(NOISE[:65536])
            digest.update(NOISE[:65536])
        self._producer.shutdown(socket.SHUT_WR)
        return digest.hexdigest()

    def receive(self) -> str:
        digest, last = hashlib.sha256(), time.monotonic()
        while got := self._consumer.recv(MIB):
            now = time.monotonic()
            self.pause, last = max(self.pause, now - last), now
            digest.update(got)
            self.count += len(got)
        return digest.hexdigest()


def connect(testbed: Testbed, stream: Stream, listener: socket.socket) -> tuple[socket.socket, socket.socket]:
    target = stream.listeners[0]
    consumer = testbed.connect("clan", target.host, target.port)
    producer, _ = listener.accept()
    producer.settimeout(PATIENCE)
    return consumer, producer


@contextmanager
def streaming(
    testbed: Testbed,
    facilities: Facilities,
    plan: str | None = None,
    connections: int = CONNECTIONS,
    rate: str = RATE,
) -> Iterator[list[Transfer]]:
    """Stream over several connections; at the end compare digests, and check that no pause was long."""
    with ThreadPoolExecutor(2 * connections) as pool, ExitStack() as opened:
        listener = opened.enter_context(closing(testbed.listen("plan", plan or testbed.v4.plan)))
        address = Address(*listener.getsockname()[:2])
        stream = opened.enter_context(facilities.stream([address], rate=rate))
        transfers = []
        for _ in range(connections):
            pair = connect(testbed, stream, listener)
            for sock in pair:
                opened.callback(sock.close)
            transfers.append(Transfer(stream.uid, *pair))
        received = [pool.submit(one.receive) for one in transfers]
        sent = [pool.submit(one.send) for one in transfers]
        try:
            until(lambda: min(one.count for one in transfers) > MIB, lambda: "nothing flows")
            yield transfers
        finally:
            for one in transfers:
                one.stopped = True
        assert [one.result(PATIENCE) for one in received] == [one.result(PATIENCE) for one in sent]
        assert max(one.pause for one in transfers) < LONGEST_PAUSE, [one.pause for one in transfers]


@pytest.mark.parametrize("seconds", [2.5, pytest.param(10.0, marks=pytest.mark.long)])
def test_each_wan_is_cut_in_turn_and_every_connection_goes_on(
    two_wans: Testbed, facilities: Facilities, seconds: float
) -> None:
    with streaming(two_wans, facilities) as transfers:
        wait_for_both(two_wans)
        for pair, cut, other in (
            ((two_wans.v4.pgw, two_wans.v4.cgw), cut_first, carried_second),
            ((SECOND["pgw"], SECOND["cgw"]), cut_second, carried_first),
        ):
            before, elsewhere = [one.count for one in transfers], other(two_wans)
            cut(two_wans, cut=True)
            try:
                time.sleep(seconds)  # the length of the outage
                moved = [one.count - count for one, count in zip(transfers, before, strict=True)]
            finally:
                cut(two_wans, cut=False)
            assert min(moved) > MIB // 2, moved
            assert other(two_wans) > elsewhere + MIB
            until_told(facilities, transfers[0].uid, pair, up=True)


def test_a_cut_of_both_wans_resets_the_connections_after_the_timeout_and_not_before(
    two_wans: Testbed, facilities: Facilities
) -> None:
    with ThreadPoolExecutor(2) as pool, ExitStack() as opened:
        listener = opened.enter_context(closing(two_wans.listen("plan", two_wans.v4.plan)))
        stream = opened.enter_context(facilities.stream([Address(*listener.getsockname()[:2])], rate=RATE))
        reader, writer = (opened.enter_context(closing(sock)) for sock in connect(two_wans, stream, listener))
        results = [pool.submit(push, writer), pool.submit(how_it_ends, reader)]
        wait_for_both(two_wans)
        cut_first(two_wans, cut=True)
        cut_second(two_wans, cut=True)
        cut = time.monotonic()
        try:
            assert [result.result(PATIENCE) for result in results] == ["reset", "reset"]
            assert WAN_TIMEOUT * 0.9 < time.monotonic() - cut < WAN_TIMEOUT * 3
        finally:
            cut_first(two_wans, cut=False)
            cut_second(two_wans, cut=False)


def test_a_path_whose_address_vanishes_is_used_again_once_it_is_back(two_wans: Testbed, facilities: Facilities) -> None:
    gateway, namespace = facilities.consumer.gateways[0], two_wans.namespace("cgw")
    path = SECOND["cgw"]
    with streaming(two_wans, facilities):
        wait_for_both(two_wans)
        netns.ip(f"addr del {path}/24 dev wan1", namespace=namespace)
        until(lambda: f"Path {path} of the WAN is away" in gateway.words(), gateway.words)
        wait_for(carried_first, two_wans)
        netns.ip(f"addr add {path}/24 dev wan1", namespace=namespace)
        until(lambda: f"Path {path} of the WAN is back" in gateway.words(), gateway.words)
        wait_for_both(two_wans)


def test_a_slow_wan_beside_a_good_one_stops_nothing(two_wans: Testbed, facilities: Facilities) -> None:
    two_wans.wan(("pgw", "cgw"), loss="1%", delay="5ms", rate="6Mbit")
    try:
        with streaming(two_wans, facilities) as transfers:
            before = sum(one.count for one in transfers)
            until(
                lambda: sum(one.count for one in transfers) > before + 16 * MIB,
                lambda: "the good WAN is not used",
            )
    finally:
        two_wans.wan(clear=True)


def test_a_middlebox_that_removes_the_option_leaves_one_path_that_works(
    two_wans: Testbed, facilities: Facilities
) -> None:
    two_wans.wan(("pgw", "cgw"), strip_multipath=True)
    try:
        before = carried_second(two_wans)
        with streaming(two_wans, facilities):
            wait_for(carried_first, two_wans)
        assert carried_second(two_wans) < before + MIB // 4
    finally:
        two_wans.wan(clear=True)


def test_a_ready_connection_keeps_a_path_that_was_cut_for_longer_than_its_own_silence_may_last(
    two_wans: Testbed,
) -> None:
    paths = {host: [getattr(two_wans.v4, host), second] for host, second in SECOND.items()}

    def unanswered() -> list[int]:
        """Return how many probes of each further path of the ready connections are not answered."""
        command = two_wans.command("cgw", ["ss", "-tnoH", "src", SECOND["cgw"]])
        said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE).stdout
        return [int(count) for count in re.findall(r"timer:\(keepalive,[^,]*,(\d+)\)", said)]

    timing = {"READY_SILENCE": 2.0}
    with (
        Facilities(two_wans, port=8200, paths=paths, timing=timing, wan={"ready": 1}) as facilities,
        closing(two_wans.listen("plan", two_wans.v4.plan)) as listener,
        facilities.stream([Address(*listener.getsockname()[:2])], rate=RATE),
    ):
        until(unanswered, lambda: "no ready connection has a second path")
        cut_second(two_wans, cut=True)
        try:
            until(lambda: min(unanswered(), default=0) > 4, lambda: f"{unanswered()}: the second path was given up")
        finally:
            cut_second(two_wans, cut=False)
        until(lambda: max(unanswered(), default=9) < 2, lambda: f"{unanswered()}: the second path is not used again")


@pytest.mark.long
def test_two_wans_carry_1_7_times_what_one_of_them_carries_over_one_connection(
    two_wans: Testbed, facilities: Facilities
) -> None:
    with narrow(two_wans, 200, delay="5ms"):
        with Facilities(two_wans, port=8000) as over_one:
            pairs = [(throughput(two_wans, over_one), throughput(two_wans, facilities)) for _ in range(2)]
        assert all(one < 210 for one, _ in pairs), pairs
        assert statistics.median(both / one for one, both in pairs) >= 1.7, pairs


def tc(testbed: Testbed, host: str, what: str) -> None:
    subprocess.run(testbed.command(host, ["tc", "qdisc", *what.split()]), check=True, timeout=PATIENCE)


def throughput(testbed: Testbed, facilities: Facilities) -> float:
    """Return the Mbit/s that a stream of one connection carries once it is at its full speed."""
    with streaming(testbed, facilities, connections=1, rate="1Gbit") as (transfer,):
        until(lambda: transfer.count > 48 * MIB, lambda: f"only {transfer.count} bytes have come")
        begun, before = time.monotonic(), transfer.count
        until(lambda: time.monotonic() - begun > 2.5, lambda: "time stands still")
        return (transfer.count - before) * 8e-6 / (time.monotonic() - begun)


def paths_told(facilities: Facilities, uid: str, role: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the figures of the paths of a stream at one side, by their addresses."""
    side = json.loads(facilities.s2uc("status", uid, "--json"))["streams"][uid][role]
    return {(path["local"], path["remote"]): path for path in side.get("paths", [])}


def test_the_figures_of_each_path_and_the_news_of_its_loss_reach_the_user_and_the_trail(
    two_wans: Testbed, facilities: Facilities
) -> None:
    first, second = (two_wans.v4.pgw, two_wans.v4.cgw), (SECOND["pgw"], SECOND["cgw"])
    with streaming(two_wans, facilities) as transfers:
        uid = transfers[0].uid
        wait_for_both(two_wans)
        until(lambda: len(carrying(paths_told(facilities, uid, "PROD"))) >= 2, lambda: "the second path is not told")
        told = paths_told(facilities, uid, "PROD")
        assert {first, second} <= set(carrying(told))
        received = paths_told(facilities, uid, "CONS")
        for one in (first, second):
            assert told[one]["connections"] == CONNECTIONS
            assert 0 < told[one]["rtt_ms"] < 1000
            assert received[one[::-1]]["bytes_to_consumer"] > MIB
            assert received[one[::-1]]["bytes_to_producer"] < MIB
        cut_second(two_wans, cut=True)
        try:
            until(lambda: not paths_told(facilities, uid, "PROD")[second]["up"], lambda: "its loss is not told")
            told = paths_told(facilities, uid, "PROD")
            assert (told[second]["failures"], told[first]["up"], told[first]["failures"]) == (1, True, 0)
            shown = facilities.s2uc("status", uid)
            assert f"the path of the WAN {' - '.join(second)} is down: its connections go on over the others" in shown
        finally:
            cut_second(two_wans, cut=False)
        until(lambda: paths_told(facilities, uid, "PROD")[second]["up"], lambda: "its return is not told")
        moved = sum(one.count for one in transfers)
    words = facilities.producer.gateways[0].words()
    for what in ("is used", "is down"):
        assert f"uid={uid} role=PROD the path of the WAN {' - '.join(second)} {what}; times so far: 1" in words
    trail = facilities.producer.store.with_suffix(".audit.jsonl").read_text().splitlines()
    events = [event for event in map(read_line, trail) if isinstance(event, PathEvent) and event.uid == uid]
    news = [(event.up, event.failures) for event in events if (event.local, event.remote) == second]
    assert news == [(True, 0), (False, 1), (True, 1)]
    assert moved > 8 * MIB


def carrying(paths: dict[tuple[str, str], dict[str, Any]]) -> list[tuple[str, str]]:
    return [pair for pair, path in paths.items() if path["up"] and path["bytes_to_consumer"] > MIB]


def test_what_a_gateway_told_the_kernel_is_taken_back_when_it_ends(two_wans: Testbed) -> None:
    def told() -> list[str]:
        command = two_wans.command("pgw", ["ip", "mptcp", "endpoint"])
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE).stdout.splitlines()

    paths = {host: [getattr(two_wans.v4, host), second] for host, second in SECOND.items()}
    other = {host: [*both, f"198.19.1.{99 + len(host)}"] for host, both in paths.items()}
    before = told()
    with Facilities(two_wans, port=7000, paths=other):
        during = told()
    assert told() == before
    assert len(during) == len(before) + len({*other["pgw"]} - {line.split()[0] for line in before})


def test_what_a_killed_gateway_left_in_the_kernel_is_taken_back_and_the_operator_s_stays(two_wans: Testbed) -> None:
    namespace = two_wans.namespace("pgw")

    def told() -> list[str]:
        command = two_wans.command("pgw", ["ip", "mptcp", "endpoint"])
        said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE).stdout
        return [line.split()[0] for line in said.splitlines()]

    mine, operators = "198.19.1.31", "198.19.1.32"
    paths = {host: [getattr(two_wans.v4, host), second] for host, second in SECOND.items()}
    paths["pgw"].append(mine)
    netns.ip(f"mptcp endpoint add {operators} signal", namespace=namespace)
    try:
        before = told()
        with Facilities(two_wans, port=7800, paths=paths) as facilities:
            gateway = facilities.producer.gateways[0]
            gateway.kill()
            assert mine in told()
            gateway.start()
            gateway.wait_until_ready()
            assert mine in told()
            assert f"Path {mine} was left in the kernel by a gateway that was killed" in gateway.words()
            assert f"{operators} was left" not in gateway.words()
        assert sorted(told()) == sorted(before)
    finally:
        netns.ip(f"mptcp endpoint delete id {_id_of(two_wans, operators)}", namespace=namespace)


def _id_of(testbed: Testbed, address: str) -> str:
    command = testbed.command("pgw", ["ip", "mptcp", "endpoint"])
    said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE).stdout
    return next(line.split()[2] for line in said.splitlines() if line.startswith(address))


def until_told(facilities: Facilities, uid: str, pair: tuple[str, str], *, up: bool) -> None:
    """Wait until the producer's side tells that a path is up, or that it is not."""
    until(
        lambda: paths_told(facilities, uid, "PROD").get(pair, {"up": False})["up"] is up,
        lambda: f"{pair}: {paths_told(facilities, uid, 'PROD')}",
    )
