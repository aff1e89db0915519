"""Ports requested by number: a protocol whose server announces its own port, and refusals.

The consumer's facility lets five ports be chosen. On one of them the producer's program listens, at another address.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import closing

import pytest
from harness import World, free_ports, refused_request, together

from support.applications import MIB, accept, connect, noise, receive, receive_exactly, sha256
from support.facilities import HOST

pytestmark = pytest.mark.usefixtures("nothing_left")

PORT = free_ports()
"""The program's port, and the one that is asked for."""
FIRST = free_ports(4)
"""The first of four more that may be asked for."""
DETECTOR = "127.0.0.9"
"""Another machine, as far as programs can tell."""


@pytest.fixture(scope="module")
def world(linux: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    chosen = {"chosen_ports": f"{PORT}, {FIRST}-{FIRST + 3}"}
    with World(tmp_path_factory.mktemp("world"), centre={"gateway": chosen}) as world:
        yield world


def test_a_client_that_is_told_the_server_s_port_finds_it_at_its_gateway(world: World) -> None:
    """As PVAccess does: what the client hears on its first connection is the port for the next ones."""
    data = noise(16 * MIB)
    with closing(socket.create_server((DETECTOR, PORT))) as server:
        server.settimeout(30)
        with world.request(1, "10Gbit", "--listen-port", f"cons={PORT}") as asked:
            consumer = world.cons(asked.join["CONS"])
            producer = world.prod(asked.join["PROD"], [f"{DETECTOR}:{PORT}"])
            wan = asked.streaming()["connection_map"][f"{HOST}:{PORT}"]
            producer.end()
            assert json.loads(consumer.end().stdout)["listeners"] == [f"{HOST}:{PORT}"]

            with connect(f"{HOST}:{PORT}") as search, accept(server) as searched:
                searched.sendall(server.getsockname()[1].to_bytes(2, "big"))
                told = int.from_bytes(receive_exactly(search, 2), "big")
                with connect(f"{HOST}:{told}") as channel, accept(server) as served:

                    def serve() -> None:
                        served.sendall(data)
                        served.shutdown(socket.SHUT_WR)

                    _, arrived = together(serve, lambda: receive(channel))
            assert sha256(arrived) == sha256(data)

            sides = json.loads(world.s2uc("status", asked.uid, "--json").stdout)["streams"][asked.uid]
            assert sides["CONS"]["listen_ports"] == [PORT]
            assert sides["CONS"]["listeners"] == [f"{HOST}:{PORT}"]
            assert sides["PROD"]["listeners"] == [wan]
            shown = world.s2uc("status", "--at", world.centre.s2cs, asked.uid).stdout
            assert f"ports:      {PORT} (requested)" in shown
            requests = [line for line in audit(world) if (line["event"], line.get("uid")) == ("request", asked.uid)]
            assert [line["listen_ports"] for line in requests] == [[PORT]]


def audit(world: World) -> list[dict[str, object]]:
    text = world.centre.store.with_suffix(".audit.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_both_sides_are_told_as_soon_as_they_are_reserved(world: World) -> None:
    lab = world.lab.gateways[0]
    options = ["--num-conn", "2", "--listen-port", f"cons={FIRST}-{FIRST + 1}"]
    options += ["--listen-port", f"PROD={lab.last_port},{lab.first_port}"]
    wan, lan = (
        [f"{HOST}:{lab.last_port}", f"{HOST}:{lab.first_port}"],
        [f"{HOST}:{FIRST + n}" for n in (0, 1)],
    )
    between = ["--prod", world.lab.s2cs, "--cons", world.centre.s2cs]

    shown = world.start_s2uc("request", *between, *options)
    lines = [shown.line() for _ in range(8)]
    assert lines[6:] == [f"producer side listens on {', '.join(wan)}", f"consumer side listens on {', '.join(lan)}"]
    world.s2uc("release", lines[0].partition(": ")[2])
    shown.stop()

    program = world.start_s2uc("request", "--json", *between, *options)
    reserved = json.loads(program.line())
    assert reserved["listeners"] == {"PROD": wan, "CONS": lan}
    world.s2uc("release", reserved["uid"])
    program.stop()


def test_what_cannot_be_had_is_refused_with_the_port_the_reason_and_the_remedy(world: World) -> None:
    with world.request(1, "1Gbit", "--listen-port", f"cons={FIRST + 2}") as asked:
        assert asked.state("CONS") == "Listening"
        taken = refused_request(world, "--listen-port", f"cons={FIRST + 2}")
        assert f"port {FIRST + 2} was requested, but another stream has it: choose another port" in taken
    for port in (80, world.centre.gateways[0].first_port):
        outside = refused_request(world, "--listen-port", f"cons={port}")
        assert f"port {port} was requested, but this gateway lets streams choose {PORT}, {FIRST}-{FIRST + 3}" in outside
    with closing(socket.create_server((HOST, PORT))):
        used = refused_request(world, "--listen-port", f"cons={PORT}")
        assert f"port {PORT} was requested, but another program on this gateway uses it at {HOST}" in used
    with world.request(1, "1Gbit", "--listen-port", f"cons={PORT}"):
        """It is free again."""


@pytest.mark.parametrize("text", ["5075", "lab=5075", "cons=", "cons=pva", "cons=5078-5075", "prod=65536"])
def test_what_names_no_ports_is_wrong_usage(world: World, text: str) -> None:
    between = ["--prod", world.lab.s2cs, "--cons", world.centre.s2cs]
    ended = world.s2uc("request", *between, "--listen-port", text, check=False)
    assert ended.returncode == 2
    assert "--listen-port" in ended.stderr
    assert repr(text)[1:-1].partition("=")[2] in ended.stderr


def test_a_file_asks_for_ports_as_the_command_line_does(world: World) -> None:
    port = FIRST + 1
    wishes = {"cmd": "REQ", "prod": world.lab.s2cs, "cons": world.centre.s2cs, "listen_ports": [f"cons={port}"]}
    file = world.folder / "request.json"
    file.write_text(json.dumps(wishes))
    program = world.start_s2uc("--req-file", str(file))
    lines = [program.line() for _ in range(8)]
    assert lines[7] == f"consumer side listens on {HOST}:{port}"
    world.s2uc("release", lines[0].partition(": ")[2])
    program.stop()
    wishes["listen_ports"] = ["cons=5075-"]
    file.write_text(json.dumps(wishes))
    ended = world.s2uc("--req-file", str(file), check=False)
    assert ended.returncode == 2
    assert "listen_ports: '5075-' is not a list of ports" in ended.stderr


def test_a_probe_finds_out_whether_ports_are_granted(world: World) -> None:
    options = ["--prod", world.lab.s2cs, "--cons", world.centre.s2cs, "--rate", "100Mbit", "--seconds", "1"]
    granted = world.s2uc("probe", *options, "--listen-port", f"cons={FIRST}").stdout
    assert f"consumer's facility: grants 1 channel at 100 Mbit/s, on {HOST}:{FIRST}" in granted
    refused = world.s2uc("probe", *options, "--listen-port", "cons=1", check=False)
    assert refused.returncode == 1
    assert "FAILED  consumer's facility: refuses the stream (" in refused.stdout
    assert "ok      released: nothing of the probe is left at either facility" in refused.stdout
