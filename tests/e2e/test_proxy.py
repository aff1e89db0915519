"""Gateways that reach the others through an HTTP proxy only: a real one, and stand-ins that refuse, hang or lie."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import pytest_twisted
from gateways import Make
from harness import Streaming, World, exchange, free_ports
from twisted.internet.threads import deferToThread

from scistream.protocol.address import Address
from scistream.protocol.messages import CONS, PROD
from support.applications import accept, address_of, how_it_ends, listeners
from support.facilities import HOST
from support.programs import Program
from support.requirements import needs
from support.waiting import until


def through(port: int, **wan: object) -> dict[str, object]:
    return {"gateway": {"wan": {"bind": HOST, "proxy": f"http://{HOST}:{port}", **wan}}}


def _accepts(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex((HOST, port)) == 0


@contextmanager
def tinyproxy(folder: Path, *more: str) -> Iterator[tuple[int, Path]]:
    """Run a real proxy; yield its port and its log."""
    needs("tinyproxy")
    port, log, settings = free_ports(), folder / "tinyproxy.log", folder / "tinyproxy.conf"
    usual = [f"Port {port}", f"Listen {HOST}", "Timeout 60", f"Allow {HOST}", f'LogFile "{log}"', "LogLevel Connect"]
    settings.write_text("\n".join([*usual, *more, ""]))
    program = Program(["tinyproxy", "-d", "-c", str(settings)], folder / "tinyproxy.err", {})
    try:
        until(lambda: _accepts(port), lambda: str(program))
        yield port, log
    finally:
        program.stop()


@pytest.mark.parametrize("dialer", [CONS, PROD])
def test_the_gateways_of_either_side_stream_through_a_real_proxy(
    fresh_world: Callable[..., World], tmp_path: Path, dialer: str
) -> None:
    with tinyproxy(tmp_path) as (port, log):
        sides = {"centre": through(port)} if dialer == CONS else {"lab": through(port, accept=False)}
        world = fresh_world(**sides)
        with world.unchanged(), listeners(1) as (target,), world.stream([address_of(target)]) as stream:
            with stream.connect() as consumer, accept(target) as producer:
                exchange(consumer, producer, seed=1)
            used = [line for line in log.read_text().splitlines() if "CONNECT 127.0.0.1:" in line]
            assert used
    assert world.lab.gateways


# -- proxies that do harm


def hang(_link: socket.socket, ended: threading.Event) -> None:
    ended.wait(30)


def refuse(link: socket.socket, _ended: threading.Event) -> None:
    link.sendall(b"HTTP/1.1 403 Not \x1b[31mhere\r\nVia: us\r\n\r\n")
    how_it_ends(link)


def die(_link: socket.socket, _ended: threading.Event) -> None:
    pass


def go_on_forever(link: socket.socket, _ended: threading.Event) -> None:
    link.sendall(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 10_000)
    how_it_ends(link)


def talk_on(link: socket.socket, _ended: threading.Event) -> None:
    link.sendall(b"HTTP/1.1 200 OK\r\n\r\n220 mail.example ready\r\n")
    how_it_ends(link)


def speak_otherwise(link: socket.socket, _ended: threading.Event) -> None:
    link.sendall(b"220 mail.example ready\r\n\r\n")
    how_it_ends(link)


def end_of_connection(stream: Streaming) -> str:
    """Open a connection, and return how it ends, which may be before its opening is noticed."""
    try:
        with stream.connect() as consumer:
            return how_it_ends(consumer)
    except ConnectionResetError:
        return "reset"


@contextmanager
def stand_in(behave: Callable[[socket.socket, threading.Event], None]) -> Iterator[tuple[int, list[str]]]:
    """Run a proxy that reads each request and then behaves so; yield its port and the first lines of requests."""
    ended = threading.Event()
    asked: list[str] = []

    def serve(link: socket.socket) -> None:
        with link:
            link.settimeout(30)
            asked.append(link.recv(4096).split(b"\r\n")[0].decode())
            if asked[-1].startswith("CONNECT "):
                with suppress(OSError):
                    behave(link, ended)

    def run(listener: socket.socket) -> None:
        while True:
            try:
                link, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(link,), daemon=True).start()

    with socket.create_server((HOST, 0)) as listener:
        threading.Thread(target=run, args=(listener,), daemon=True).start()
        try:
            yield listener.getsockname()[1], asked
        finally:
            ended.set()
            listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    ("behave", "told"),
    [
        (refuse, 'refused: "HTTP/1.1 403 Not ?[31mhere"'),
        (hang, "did not answer within 1 s"),
        (die, "closed the connection before it answered"),
        (go_on_forever, "sent an answer of more than 8192 bytes"),
        (speak_otherwise, 'did not answer in HTTP: "220 mail.example ready"'),
    ],
)
def test_a_proxy_that_does_not_connect_is_told_and_the_program_is_reset(
    fresh_world: Callable[..., World], behave: Callable[[socket.socket, threading.Event], None], told: str
) -> None:
    with stand_in(behave) as (port, asked):
        world = fresh_world(centre=through(port), timing={"DATA_DIAL": 1.0})
        with world.unchanged(), listeners(1) as (target,), world.stream([address_of(target)]) as stream:
            assert end_of_connection(stream) == "reset"

            (gateway,) = world.centre.gateways
            until(lambda: told in gateway.words(), gateway.words)
            assert f"the proxy at 127.0.0.1:{port}, asked for the other gateway" in gateway.words()
            assert all(line.startswith("CONNECT 127.0.0.1:") for line in asked)


def test_what_a_proxy_says_behind_its_answer_is_taken_for_the_other_gateways(fresh_world: Callable[..., World]) -> None:
    with stand_in(talk_on) as (port, _):
        world = fresh_world(centre=through(port))
        with listeners(1) as (target,), world.stream([address_of(target)]) as stream:
            assert end_of_connection(stream) == "reset"
            (gateway,) = world.centre.gateways
            until(lambda: "TLS failed: wrong version number" in gateway.words(), gateway.words)


# -- a probe


def probed(world: World, *options: str) -> str:
    """Return what a probe says of the path between the gateways, which fails."""
    with world.unchanged():
        between = ["--prod", world.lab.s2cs, "--cons", world.centre.s2cs]
        ended = world.s2uc("probe", *between, "--seconds", "1", *options, check=False)
    assert ended.returncode == 1, ended
    (line,) = [line for line in ended.stdout.splitlines() if "between the gateways" in line]
    return line


def words(world: World) -> str:
    """Return the log of the consumer's gateway."""
    return world.centre.gateways[0].words()


QUICK = {"DATA_DIAL": 1.0, "PROBE_CONNECT": 2.0, "DIAGNOSIS_CONNECT": 1.0, "DIAGNOSIS_WAIT": 0.5}


def test_a_probe_through_a_real_proxy_measures_and_where_the_proxy_refuses_names_it(
    fresh_world: Callable[..., World], tmp_path: Path
) -> None:
    with tinyproxy(tmp_path) as (port, log):
        world = fresh_world(centre=through(port))
        between = ["--prod", world.lab.s2cs, "--cons", world.centre.s2cs]
        assert "all " in world.s2uc("probe", *between, "--seconds", "1", "--rate", "50Mbit").stdout
        assert "CONNECT 127.0.0.1:" in log.read_text()
    with tinyproxy(tmp_path, "ConnectPort 443") as (port, _):
        world = fresh_world(centre=through(port), timing=QUICK)
        said = probed(world)
        assert f"through the proxy at {HOST}:{port}. The proxy has to let this gateway CONNECT to all `ports`" in said
        assert re.search(r'refused: "HTTP/1\.\d 403 ', words(world))


@pytest.mark.parametrize(
    ("behave", "told", "logged"),
    [
        (hang, "has to let this gateway CONNECT", "did not answer within 1 s"),
        (speak_otherwise, "cannot be used", 'did not answer in HTTP: "220 mail.example ready"'),
    ],
)
def test_a_probe_names_the_proxy_that_does_not_connect(
    fresh_world: Callable[..., World],
    behave: Callable[[socket.socket, threading.Event], None],
    told: str,
    logged: str,
) -> None:
    with stand_in(behave) as (port, _):
        world = fresh_world(centre=through(port), timing=QUICK)
        said = probed(world)
        assert f"the proxy at {HOST}:{port}" in said
        assert told in said
        assert logged not in said, "what answers where is not told to a user"
        asked = rf"the proxy at {HOST}:{port}, asked for the gateway at \S+, "
        assert re.search(asked + re.escape(logged), words(world))


def test_a_probe_names_a_proxy_that_is_down(fresh_world: Callable[..., World]) -> None:
    port = free_ports()
    world = fresh_world(centre=through(port), timing=QUICK)
    said = probed(world)
    assert f"the proxy at {HOST}:{port} cannot be used, through which this gateway connects to others" in said
    assert "check `proxy` in [wan]" in said
    assert f"the proxy at {HOST}:{port}, asked for the gateway at " in words(world)
    assert "cannot be reached from this gateway: The connection was refused" in words(world)


def test_a_probe_names_the_proxy_of_a_producer_that_dials(fresh_world: Callable[..., World]) -> None:
    with stand_in(refuse) as (port, _):
        world = fresh_world(lab=through(port, accept=False), timing=QUICK)
        said = probed(world)
    assert "the producer's gateway has opened no connection to this one in time" in said
    assert re.search(rf"The producer's gateway says: .* could not be reached through the proxy at {HOST}:{port};", said)


# -- names


EVERYWHERE = ["0.0.0.0/0", "::/0"]


@pytest.mark.parametrize(
    ("networks", "is_named"),
    [
        (EVERYWHERE, True),
        (["0.0.0.0/0"], False),
        (["127.0.0.0/8", "::/0"], False),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_proxy_gets_names_only_where_the_gateway_may_dial_every_address(
    make: Make, networks: list[str], is_named: bool
) -> None:
    with stand_in(refuse) as (port, asked):
        stream = make(ready=0, proxy=f"{HOST}:{port}", wan_networks=networks)
        there = Address("localhost", stream.prod.address().port)
        stream.cons.arm(stream.bundles[CONS], [there])
        assert await deferToThread(stream.attempt) == "reset"
    assert asked == [f"CONNECT {there if is_named else stream.prod.address()} HTTP/1.1"]


@pytest_twisted.ensureDeferred
async def test_a_name_outside_the_networks_reaches_no_proxy(make: Make) -> None:
    with stand_in(refuse) as (port, asked):
        stream = make(ready=0, proxy=f"{HOST}:{port}", wan_networks=["192.0.2.0/24"])
        stream.cons.arm(stream.bundles[CONS], [Address("localhost", stream.prod.address().port)])
        assert await deferToThread(stream.attempt) == "reset"
        await stream.until(lambda: stream.cons.reasons)
    assert asked == []
