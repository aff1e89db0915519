"""The testbed disturbs the WAN as requested, and SciStream keeps its guarantees on it."""

from __future__ import annotations

import hashlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import netns
import pytest
from testbed import MTU, Testbed, TestbedError, Traffic
from testbed_addresses import Addresses
from testbed_facilities import Facilities, Stream

from scistream.protocol.address import Address
from support import applications
from support.applications import MIB, how_it_ends, push
from support.programs import executed_programs
from support.requirements import needs
from support.waiting import PATIENCE, until

SIGN = b"through"


# Applications


def address_of(listener: socket.socket) -> Address:
    """Where it listens."""
    return Address(*listener.getsockname()[:2])


def send(sock: socket.socket, count: int) -> str:
    """Send that many bytes and end the direction; their SHA-256."""
    digest = applications.send(sock, count)
    sock.shutdown(socket.SHUT_WR)
    return digest


class Receiver:
    """Receives until the end; `count` may be read meanwhile."""

    def __init__(self, sock: socket.socket) -> None:
        self.count = 0
        self._sock = sock

    def run(self) -> str:
        """Return the SHA-256 of everything received."""
        digest, buffer = hashlib.sha256(), bytearray(MIB)
        while got := self._sock.recv_into(buffer):
            digest.update(memoryview(buffer)[:got])
            self.count += got
        return digest.hexdigest()


@contextmanager
def background(*jobs: Callable[[], Any]) -> Iterator[list[Callable[[], Any]]]:
    """Run blocking jobs in threads; gives for each what waits for its result. They start no processes."""
    with ThreadPoolExecutor(len(jobs)) as pool:
        running = [pool.submit(job) for job in jobs]
        yield [lambda one=one: one.result(2 * PATIENCE) for one in running]


@contextmanager
def connected(
    testbed: Testbed, stream: Stream, listener: socket.socket
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Open a connection through a stream; yield the consumer's end and the producer's."""
    target = stream.listeners[0]
    with closing(testbed.connect("clan", target.host, target.port)) as consumer:
        producer, _ = listener.accept()
        producer.settimeout(PATIENCE)
        with closing(producer):
            yield consumer, producer


@contextmanager
def one_connection(testbed: Testbed, facilities: Facilities) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Request a stream and open one connection through it."""
    with ExitStack() as opened:
        listener = opened.enter_context(closing(testbed.listen("plan", testbed.v4.plan)))
        stream = opened.enter_context(facilities.stream([address_of(listener)]))
        yield opened.enter_context(connected(testbed, stream, listener))


# The network


REACHABLE = {
    "plan": {"pgw_lan", "pgw"},
    "pgw": {"plan", "cgw", "user"},
    "cgw": {"clan", "pgw", "user"},
    "clan": {"cgw_lan", "cgw"},
    "user": {"pgw", "cgw"},
}
HOST_OF = {
    "plan": "plan",
    "pgw_lan": "pgw",
    "pgw": "pgw",
    "cgw_lan": "cgw",
    "cgw": "cgw",
    "clan": "clan",
    "user": "user",
}


def reaches(testbed: Testbed, host: str, address: str, port: int, timeout: float = 0.3) -> bool:
    """Return True if a connection from a host comes about."""
    try:
        testbed.connect(host, address, port, timeout).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize("version", ["v4", "v6"])
def test_hosts_reach_their_neighbours_and_nobody_else(wan: Testbed, version: str) -> None:
    v: Addresses = getattr(wan, version)
    with ExitStack() as opened:
        ports = {
            name: opened.enter_context(closing(wan.listen(host, getattr(v, name)))).getsockname()[1]
            for name, host in HOST_OF.items()
        }
        found = {
            host: {
                name for name in ports if HOST_OF[name] != host and reaches(wan, host, getattr(v, name), ports[name])
            }
            for host in REACHABLE
        }
    assert found == REACHABLE


@pytest.mark.parametrize("version", ["v4", "v6"])
def test_gateways_forward_nothing_even_to_peers_that_know_a_way(wan: Testbed, version: str) -> None:
    v: Addresses = getattr(wan, version)
    routes = {
        "plan": f"{v.consumer_lan} via {v.pgw_lan}",
        "pgw": f"{v.consumer_lan} via {v.cgw}",
        "cgw": f"{v.producer_lan} via {v.pgw}",
        "clan": f"{v.producer_lan} via {v.cgw_lan}",
    }
    with ExitStack() as opened:
        for host, route in routes.items():
            netns.ip(f"route add {route}", namespace=wan.namespace(host))
            opened.callback(netns.ip, f"route delete {route}", namespace=wan.namespace(host))
        for host, gateway, other in (("plan", "pgw", "clan"), ("clan", "cgw", "plan")):
            port = opened.enter_context(closing(wan.listen(other, getattr(v, other)))).getsockname()[1]
            before, came = wan.counters(), packets_from_lan(wan, gateway)
            assert not reaches(wan, host, getattr(v, other), port)
            assert packets_from_lan(wan, gateway) > came
            assert (wan.counters() - before).between("pgw", "cgw").entered_packets == 0


def packets_from_lan(testbed: Testbed, gateway: str) -> int:
    """How many packets have come to a gateway from its LAN."""
    with netns.inside(testbed.namespace(gateway)):
        lines = Path("/proc/thread-self/net/dev").read_text().splitlines()
    return next(int(line.split()[2]) for line in lines if line.split()[0] == "lan0:")


def test_a_forked_command_is_where_an_executed_one_is(testbed: Testbed) -> None:
    code = """
import os
print(os.stat("/proc/self/ns/net").st_ino)
with open("/proc/self/net/tcp") as file:
    sockets = [line.split() for line in file]
print(*sorted(socket[1] for socket in sockets if socket[3] == "0A"))  # those that listen
"""
    script = [sys.executable, "-c", code]
    with closing(testbed.listen("user", "127.0.0.1")):
        forked = testbed.exec("user", script).stdout
        with executed_programs():
            assert testbed.exec("user", script).stdout == forked
        assert testbed.exec("pgw", script).stdout != forked


def test_two_testbeds_are_up_at_once_and_nothing_is_left_of_one_that_went_down(testbed: Testbed) -> None:
    other = Testbed.of_its_own()
    assert other.leftovers() == []
    with other:
        sleeper = other.start("plan", ["sleep", "60"])
        with pytest.raises(TestbedError, match="is up"):
            Testbed(other.id).up()
        until(lambda: netns.processes([other.namespace("plan")]) == {sleeper.pid}, other.leftovers)
        assert len(other.leftovers()) == len(other.namespaces) + 3  # the sleeper, the router, a folder
        with closing(other.listen("cgw", other.v4.cgw)) as listener:
            assert not reaches(testbed, "user", *listener.getsockname()[:2])
            assert reaches(other, "user", *listener.getsockname()[:2])
        Testbed(other.id).down()  # whoever knows the id may end it
        assert sleeper.process.wait(PATIENCE) != 0
    other.down()
    assert other.leftovers() == []
    assert testbed.is_up()


# What the WAN does to packets


def round_trip(testbed: Testbed, host: str, address: str) -> float:
    """Seconds that it takes to connect."""
    with closing(testbed.listen({testbed.v4.pgw: "pgw", testbed.v4.cgw: "cgw"}[address], address)) as listener:
        best = PATIENCE
        for _ in range(3):
            started = time.monotonic()
            testbed.connect(host, *listener.getsockname()).close()
            best = min(best, time.monotonic() - started)
    return best


def shoot(testbed: Testbed, count: int) -> tuple[list[int], Traffic]:
    """Send numbered datagrams from the user to the consumer's gateway: those that arrive, and what the WAN counted."""
    with ExitStack() as opened:
        target = opened.enter_context(closing(testbed.open_socket("cgw", socket.SOCK_DGRAM)))
        target.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * MIB)
        target.bind((testbed.v4.cgw, 0))
        source = opened.enter_context(closing(testbed.open_socket("user", socket.SOCK_DGRAM)))
        source.connect(target.getsockname())
        before = testbed.counters()
        for number in range(count):
            source.send(number.to_bytes(4, "big"))

        def quiet() -> bool:
            ways = testbed.wan()
            entered = (Traffic({(way.source, way.target): way.counters for way in ways}) - before).of("user", "cgw")
            return entered.entered_packets == count and not any(way.held_bytes for way in ways)

        until(quiet, lambda: f"{testbed.counters() - before}")
        seen = testbed.counters() - before
        arrived = [int.from_bytes(target.recv(4), "big") for _ in range(seen.of("user", "cgw").delivered_packets)]
    return arrived, seen


def test_a_delay_is_that_of_each_way(wan: Testbed) -> None:
    assert round_trip(wan, "user", wan.v4.pgw) < 0.04
    wan.wan(("user", "pgw"), delay="50ms")
    assert 0.1 <= round_trip(wan, "user", wan.v4.pgw) < 0.14
    assert round_trip(wan, "user", wan.v4.cgw) < 0.04
    wan.wan(("user", "pgw"), one_way=True, delay="0")
    assert 0.05 <= round_trip(wan, "user", wan.v4.pgw) < 0.09


def test_jitter_moves_packets_and_keeps_their_order(wan: Testbed) -> None:
    wan.wan(delay="20ms", jitter="10ms")
    assert 0.02 <= round_trip(wan, "user", wan.v4.pgw) < 0.09
    arrived, _ = shoot(wan, 500)
    assert arrived == list(range(500))


def test_packets_are_lost_at_the_rate_that_was_asked_for_and_the_same_ones_for_a_seed(wan: Testbed) -> None:
    wan.wan(loss="10%")
    arrived, seen = shoot(wan, 2000)
    way = seen.of("user", "cgw")
    assert 140 < way.dropped_loss < 260
    assert way.delivered_packets + way.dropped_loss == way.entered_packets == 2000
    wan.reseed(1)
    assert shoot(wan, 2000)[0] == arrived
    wan.reseed(2)
    assert shoot(wan, 2000)[0] != arrived


def test_packets_are_repeated_and_reordered_as_asked_and_none_is_lost(wan: Testbed) -> None:
    wan.wan(duplicate="5%")
    arrived, seen = shoot(wan, 1000)
    assert 20 < seen.of("user", "cgw").duplicated == len(arrived) - 1000 < 90
    assert arrived == sorted(arrived)
    wan.wan(duplicate="0", reorder="5%")
    arrived, seen = shoot(wan, 1000)
    assert seen.of("user", "cgw").reordered > 20
    assert sorted(arrived) == list(range(1000))
    assert arrived != list(range(1000))


def test_a_rate_holds_back_tcp_and_drops_what_a_flood_brings_on_top(wan: Testbed) -> None:
    wan.wan(rate="20Mbit")
    with ExitStack() as opened:
        listener = opened.enter_context(closing(wan.listen("cgw", wan.v4.cgw)))
        source = opened.enter_context(closing(wan.connect("pgw", *listener.getsockname())))
        target = opened.enter_context(closing(listener.accept()[0]))
        target.settimeout(PATIENCE)
        started = time.monotonic()
        with background(lambda: send(source, 5 * MIB // 2)):
            Receiver(target).run()
        assert 0.9 < time.monotonic() - started < 3
    wan.wan(rate="1Mbit", queue="50ms")
    arrived, seen = shoot(wan, 2000)  # 64 kB of packets, of which 6 kB may wait
    assert 0 < len(arrived) < 1000
    assert seen.of("user", "cgw").dropped_queue == 2000 - len(arrived)


def test_a_cut_stops_everything_until_it_is_healed(wan: Testbed) -> None:
    with (
        closing(wan.listen("pgw", wan.v4.pgw)) as listener,
        closing(wan.connect("user", *listener.getsockname())) as user,
    ):
        gateway, _ = listener.accept()
        with closing(gateway):
            gateway.settimeout(0.5)
            wan.wan(("user", "pgw"), cut=True)
            before = wan.counters()
            user.sendall(SIGN)
            with pytest.raises(TimeoutError):
                gateway.recv(100)
            seen = wan.counters() - before
            assert seen.of("user", "pgw").dropped_cut > 0
            assert seen.between("user", "pgw").delivered_packets == 0
            assert round_trip(wan, "user", wan.v4.cgw) < 0.1  # elsewhere the WAN is whole
            wan.wan(cut=False)
            gateway.settimeout(PATIENCE)
            assert gateway.recv(100) == SIGN


def test_the_wan_is_faster_than_what_tests_send_over_it(wan: Testbed) -> None:
    amount = 128 * MIB
    with ExitStack() as opened:
        listener = opened.enter_context(closing(wan.listen("cgw", wan.v4.cgw)))
        source = opened.enter_context(closing(wan.connect("pgw", *listener.getsockname())))
        target = opened.enter_context(closing(listener.accept()[0]))
        target.settimeout(PATIENCE)
        before, started = wan.counters(), time.monotonic()
        with background(lambda: send(source, amount)):
            Receiver(target).run()
        rate = amount * 8 / (time.monotonic() - started)
    way = (wan.counters() - before).of("pgw", "cgw")
    assert way.delivered_bytes > amount
    assert way.delivered_packets >= amount / MTU
    assert rate > 300e6


# The command for people


class Command:
    """``scistream-testbed`` for one testbed."""

    def __init__(self, id: str) -> None:
        self._start = [sys.executable, str(Path(__file__).with_name("scistream-testbed")), "--id", id]

    def __call__(self, *arguments: str, status: int = 0) -> str:
        ended = subprocess.run([*self._start, *arguments], capture_output=True, text=True, timeout=PATIENCE)
        assert ended.returncode == status, ended.stderr
        return ended.stdout + ended.stderr


def test_people_bring_a_testbed_up_use_it_and_take_it_down(testbed: Testbed) -> None:
    other = Testbed.of_its_own()
    command = Command(other.id)
    assert "not up" in command("status", status=1)
    try:
        command("up", "--mtu", "1500", "--facilities")
        assert "is up, or left over" in command("up", status=1)
        assert command("exec", "user", "s2uc", "list") == "no streams\n"
        command("exec", "plan", "false", status=1)
        assert "delay 30ms, loss 0.5%" in command(
            "wan", "--between", "user", "pgw", "--delay", "30ms", "--loss", "0.5%"
        )
        assert "is no share" in command("wan", "--loss", "much", status=2)
        assert "cut" in command("wan", "--cut")
        middlebox = command("wan", "--forget-idle", "10s", "--reset-idle", "20s", "--strip-multipath")
        assert "forget idle 10000ms, reset idle 20000ms, strip multipath" in middlebox
        status = json.loads(command("status", "--json"))
        assert [len(status["processes"][host]) for host in ("plan", "pgw", "wan", "cgw", "clan", "user")] == [
            0,
            3,  # S2CS, S2DS and its element
            1,
            3,
            0,
            0,
        ]
        assert {(way["source"], way["target"]): way["settings"]["delay"] for way in status["ways"]}[
            "pgw", "user"
        ] == 0.03
        assert all(way["settings"]["cut"] for way in status["ways"])
        assert "delay 30ms" in command("status")
        assert "as it comes" in command("wan", "--clear")
        command("down")
        assert other.leftovers() == []
        assert "there is no testbed" in command("down")
    finally:
        other.down()


# SciStream on it


def test_iperf3_measures_a_stream_whose_bytes_cross_the_wan(wan: Testbed, facilities: Facilities) -> None:
    needs("iperf3")
    request = facilities.request()
    before = wan.counters()
    server = request.prod([Address(wan.v4.plan, 7000)], ["iperf3", "-s", "-1", "-p", "7000"])
    client = request.cons(["iperf3", "-c", "{host}", "-p", "{port}", "-n", "64M", "-R", "--json"])
    connection_map = request.streaming()["connection_map"]
    report = json.loads(client.end().stdout)
    server.end()
    request.release()
    lan, at_wan = (Address.parse(listener) for listener in connection_map)
    assert (lan.host, at_wan.host) == (wan.v4.cgw_lan, wan.v4.pgw)
    assert connection_map[str(lan)] == str(at_wan)
    assert report["start"]["connecting_to"]["host"] == wan.v4.cgw_lan
    received = report["end"]["sum_received"]["bytes"]
    assert received > 32 * MIB
    assert (wan.counters() - before).of("pgw", "cgw").delivered_bytes > received


def test_a_stream_over_ipv6_carries_all_bytes(wan: Testbed) -> None:
    amount = 8 * MIB
    with ExitStack() as opened:
        facilities = opened.enter_context(Facilities(wan, port=7000, v=wan.v6))
        listener = opened.enter_context(closing(wan.listen("plan", wan.v6.plan)))
        stream = opened.enter_context(facilities.stream([address_of(listener)]))
        consumer, producer = opened.enter_context(connected(wan, stream, listener))
        before = wan.counters()
        with background(lambda: send(producer, amount)) as (sent,):
            assert Receiver(consumer).run() == sent()
        assert (wan.counters() - before).of("pgw", "cgw").delivered_bytes > amount


def test_a_stream_is_set_up_and_carries_all_bytes_over_50_ms_and_1_percent_loss(
    wan: Testbed, facilities: Facilities
) -> None:
    amount = 4 * MIB
    wan.wan(delay="50ms", loss="1%")
    before = wan.counters()
    with (
        one_connection(wan, facilities) as (consumer, producer),
        background(lambda: send(producer, amount), lambda: send(consumer, MIB)) as (sent, sent_back),
    ):
        assert Receiver(consumer).run() == sent()
        assert Receiver(producer).run() == sent_back()
    seen = wan.counters() - before
    assert seen.of("pgw", "cgw").delivered_bytes > amount
    assert seen.between("pgw", "cgw").dropped_loss > 0
    assert seen.between("user", "pgw").delivered_packets > 0
    assert seen.between("user", "cgw").delivered_packets > 0


def test_a_new_connection_over_100_ms_reaches_the_rate_of_the_path_as_soon_as_plain_tcp(
    wan: Testbed, facilities: Facilities
) -> None:
    amount = 16 * MIB
    wan.wan(("pgw", "cgw"), delay="50ms")

    def seconds(consumer: socket.socket, producer: socket.socket) -> float:
        begun = time.monotonic()
        with background(lambda: send(producer, amount)) as (sent,):
            assert Receiver(consumer).run() == sent()
        return time.monotonic() - begun

    with (
        closing(wan.listen("pgw", wan.v4.pgw)) as listener,
        closing(wan.connect("cgw", *listener.getsockname()[:2])) as consumer,
        closing(listener.accept()[0]) as producer,
    ):
        alone = seconds(consumer, producer)
    with one_connection(wan, facilities) as (consumer, producer):
        through = seconds(consumer, producer)
    assert through < 1.5 * alone, f"{through:.2f} s through gateways, {alone:.2f} s by plain TCP"


@contextmanager
def kernel_setting(namespace: str, name: str, value: str) -> Iterator[None]:
    """Set a value in ``/proc/sys/net/ipv4`` of a host, and restore it."""
    file = Path("/proc/sys/net/ipv4", name)
    with netns.inside(namespace):
        before = file.read_text()
        file.write_text(value)
    try:
        yield
    finally:
        with netns.inside(namespace):
            file.write_text(before)


def test_the_user_learns_once_that_buffers_bound_a_stream_and_which_setting_helps(wan: Testbed) -> None:
    amount = 4 * MIB
    wan.wan(("pgw", "cgw"), delay="50ms")
    with ExitStack() as opened:
        opened.enter_context(kernel_setting(wan.namespace("pgw"), "tcp_wmem", f"4096 16384 {MIB}"))
        facilities = opened.enter_context(Facilities(wan, port=9000))
        listener = opened.enter_context(closing(wan.listen("plan", wan.v4.plan)))
        stream = opened.enter_context(facilities.stream([address_of(listener)], rate="1Gbit"))
        consumer, producer = opened.enter_context(connected(wan, stream, listener))
        with background(lambda: applications.send(producer, amount)) as (sent,):
            assert hashlib.sha256(applications.receive_exactly(consumer, amount)).hexdigest() == sent()

        def told() -> list[str]:
            lines = facilities.s2uc("status", stream.uid).splitlines()
            return [line for line in lines if "below the stream's 1000 Mbit/s" in line]

        (notice,) = until(told, lambda: facilities.s2uc("status", stream.uid))
        assert "sysctl -w net.ipv4.tcp_wmem=" in notice
        assert [notice] == told()
        log = facilities.producer.gateways[0].log.read_text()
        assert log.count("sysctl -w net.ipv4.tcp_wmem=") == 1


def test_a_transfer_goes_on_after_5_s_without_wan_and_all_bytes_arrive(wan: Testbed, facilities: Facilities) -> None:
    amount = 24 * MIB
    wan.wan(("pgw", "cgw"), rate="100Mbit")
    with one_connection(wan, facilities) as (consumer, producer):
        receiver = Receiver(consumer)
        with background(receiver.run, lambda: send(producer, amount)) as (received, sent):
            until(lambda: receiver.count > amount // 4, lambda: f"{receiver.count} bytes have arrived")
            before = wan.counters()
            wan.wan(("pgw", "cgw"), cut=True)
            time.sleep(1.0)  # what had come through before the cut arrives
            stood = receiver.count
            time.sleep(4.0)
            assert receiver.count == stood < amount
            seen = wan.counters() - before
            assert seen.of("pgw", "cgw").dropped_cut > 0
            wan.wan(("pgw", "cgw"), cut=False)
            assert received() == sent()
        assert receiver.count == amount
    assert (wan.counters() - before).of("pgw", "cgw").delivered_bytes > amount - stood


def test_a_cut_longer_than_the_wan_timeout_resets_both_applications(wan: Testbed) -> None:
    with ExitStack() as opened:
        facilities = opened.enter_context(Facilities(wan, port=6000, wan_timeout="3s"))
        listener = opened.enter_context(closing(wan.listen("plan", wan.v4.plan)))
        stream = opened.enter_context(facilities.stream([address_of(listener)]))
        reader, writer = opened.enter_context(connected(wan, stream, listener))
        idle = opened.enter_context(connected(wan, stream, listener))
        for one, other in (idle, idle[::-1]):
            one.sendall(SIGN)
            assert other.recv(len(SIGN)) == SIGN

        ends = [lambda: push(writer), lambda: how_it_ends(reader)]
        ends += [lambda one=one: how_it_ends(one) for one in idle]
        busy = wan.counters()
        with background(*ends) as results:
            until(lambda: (wan.counters() - busy).of("pgw", "cgw").delivered_bytes > MIB, lambda: "nothing flows")
            wan.wan(("pgw", "cgw"), cut=True)
            cut = time.monotonic()
            assert [result() for result in results] == ["reset"] * 4
            assert 2.5 < time.monotonic() - cut < 12
        assert (wan.counters() - busy).between("pgw", "cgw").dropped_cut > 0

        wan.wan(cut=False)
        # The stream itself has not suffered.
        consumer, producer = opened.enter_context(connected(wan, stream, listener))
        with background(lambda: send(producer, MIB)) as (sent,):
            assert Receiver(consumer).run() == sent()


def test_data_flows_on_while_the_user_is_cut_off_and_pending_answers_follow(
    wan: Testbed, facilities: Facilities
) -> None:
    amount = 48 * MIB
    wan.wan(("pgw", "cgw"), rate="100Mbit")
    with one_connection(wan, facilities) as (consumer, producer):
        waiting = facilities.request()
        receiver = Receiver(consumer)
        with background(receiver.run, lambda: send(producer, amount)) as (received, sent):
            before = wan.counters()
            for gateway in ("pgw", "cgw"):
                wan.wan(("user", gateway), cut=True)
            greeted = waiting.prod([Address(wan.v4.plan, 7000)])
            greeted.end()  # its facility knows; the user does not
            assert received() == sent()
            seen = wan.counters() - before
        assert receiver.count == amount
        assert seen.of("pgw", "cgw").delivered_bytes > amount
        assert seen.between("pgw", "cgw").dropped_cut == 0
        assert seen.between("user", "pgw").dropped_cut > 0
        assert seen.between("user", "pgw").delivered_packets == 0
        wan.wan(cut=False)
        waiting.streaming()
        waiting.release()
