"""`s2uc probe`: which lines say ok or FAILED in each situation, and that nothing is left behind."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
from collections.abc import Callable

import pytest
from harness import World, assert_same, free_ports

from support.applications import connect
from support.facilities import HOST
from support.waiting import until


def probe(world: World, *options: str, status: int, prod: str = "", cons: str = "") -> list[str]:
    """Return the lines of a probe between the facilities of a world; check its exit status."""
    between = ["--prod", prod or world.lab.s2cs, "--cons", cons or world.centre.s2cs]
    ended = world.s2uc("probe", *between, "--seconds", "1", *options, check=False)
    assert ended.returncode == status, ended
    assert "Traceback" not in ended.stderr
    return ended.stdout.splitlines()


def line_of(lines: list[str], about: str) -> str:
    """Return the only line that begins with `about` after its verdict."""
    (found,) = [line for line in lines if line[8:].startswith(about)]
    return found


def verdicts(lines: list[str]) -> list[str]:
    return [line.split()[0] for line in lines]


OK_EVERYWHERE = ["ok"] * 7
MakeWorld = Callable[..., World]


@pytest.mark.usefixtures("nothing_left")
def test_between_healthy_facilities_every_line_says_ok_and_what_was_measured(world: World) -> None:
    lines = probe(world, "--num-conn", "3", "--rate", "200Mbit", status=0)
    assert verdicts(lines) == OK_EVERYWHERE
    assert re.search(r"valid for 39\d more days$", lines[0])
    for line, side, facility in ((lines[1], "producer", world.lab), (lines[2], "consumer", world.centre)):
        assert line.startswith(f"ok      {side}'s S2CS {facility.s2cs}: reached in ")
        assert "its certificate is valid for 39" in line
        assert re.search(r"answers Status in \d+\.\d ms$", line)
    for line, facility in ((lines[3], world.lab), (lines[4], world.centre)):
        assert "grants 3 channels at 200 Mbit/s, on " in line
        listeners = line.partition(" on ")[2].split(", ")
        assert len(listeners) == 3
        assert all(facility.gateways[0].offers(listener) for listener in listeners)
    measured = re.search(
        r"connected in ([\d.]+) ms, round trip ([\d.]+) ms, (\d+) Mbit/s to the consumer, "
        r"(\d+) Mbit/s to the producer, all ([\d.]+) MB arrived intact",
        lines[5],
    )
    assert measured is not None
    connected, trip, to_consumer, to_producer, megabytes = map(float, measured.groups())
    assert connected > trip > 0
    assert 100 < to_consumer < 220, "it is not faster than the rate that was asked for"
    assert 100 < to_producer < 220
    assert 20 < megabytes < 100
    assert lines[6] == "ok      released: nothing of the probe is left at either facility"


@pytest.mark.usefixtures("nothing_left")
def test_a_probe_as_json_has_every_check_and_the_figures(world: World) -> None:
    (line,) = probe(world, "--json", "--rate", "100Mbit", status=0)
    report = json.loads(line)
    assert report["ok"] is True
    assert [(check["name"], check["role"], check["ok"]) for check in report["checks"]] == [
        ("certificate", None, True),
        ("reach", "PROD", True),
        ("reach", "CONS", True),
        ("grant", "PROD", True),
        ("grant", "CONS", True),
        ("wan", None, True),
        ("release", None, True),
    ]
    found = report["probe"]
    assert (found["state"], found["bytes_right"], found["reason"]) == ("done", True, "")
    assert found["bytes"] > 10_000_000
    assert world.lab.states()[report["uid"], "PROD"] == "Released"
    assert world.centre.states()[report["uid"], "CONS"] == "Released"


@pytest.mark.usefixtures("nothing_left")
def test_one_facility_can_be_probed_against_itself(world: World) -> None:
    lines = probe(world, "--rate", "100Mbit", status=0, cons=world.lab.s2cs)
    assert verdicts(lines) == OK_EVERYWHERE


@pytest.mark.usefixtures("nothing_left")
def test_no_application_gets_into_a_probe(world: World) -> None:
    between = ["--prod", world.lab.s2cs, "--cons", world.centre.s2cs]
    running = world.start_s2uc("probe", *between, "--seconds", "2", "--rate", "10Mbit")
    lines = [running.line() for _ in range(5)]
    listener = line_of(lines, "consumer's facility").partition(" on ")[2]
    sock = until(lambda: accepted(listener), lambda: "its listener does not listen")
    with sock:
        sock.settimeout(10)
        got = b""
        with contextlib.suppress(ConnectionError):
            sock.sendall(b"\x01\x00\x00G")
            got = sock.recv(1)
        assert got == b""
    assert verdicts(running.end().stdout.splitlines()) == OK_EVERYWHERE


def accepted(listener: str) -> socket.socket | None:
    try:
        return connect(listener)
    except ConnectionRefusedError:
        return None
    except ConnectionResetError:  # accepted, and cut off before this end knew: it may look again
        return None


@pytest.mark.usefixtures("nothing_left")
def test_a_probe_that_is_interrupted_releases(world: World) -> None:
    between = ["--prod", world.lab.s2cs, "--cons", world.centre.s2cs]
    running = world.start_s2uc("probe", *between, "--seconds", "20", "--rate", "10Mbit")
    for _ in range(5):
        running.line()
    until(lambda: "Streaming" in world.centre.states().values(), world.centre.states)
    running.process.send_signal(signal.SIGTERM)
    ended = running.end(status=1)
    assert ended.stdout.splitlines()[-1].startswith("ok      released")
    assert "interrupted" in ended.stderr


@pytest.mark.usefixtures("nothing_left")
def test_a_facility_whose_authority_is_not_trusted_fails_and_the_other_is_tried_all_the_same(world: World) -> None:
    lines = probe(world, "--authority", str(world.lab.authority), status=1)
    assert verdicts(lines) == ["ok", "ok", "FAILED", "ok", "-", "-", "ok"]
    reached = line_of(lines, "consumer's S2CS")
    assert "The centre" in reached
    assert "its authority is not in `authorities`" in reached
    assert "cannot be reached" in line_of(lines, "consumer's facility")
    assert "not tried, since the consumer's facility has granted nothing" in line_of(lines, "between the gateways")
    assert line_of(lines, "producer's facility").startswith("ok ")


@pytest.mark.usefixtures("nothing_left")
def test_a_user_that_a_facility_does_not_know_is_told_so(world: World) -> None:
    stranger = world.lab.gateways[0].file.parent / "pki" / "lab-s2cs"
    options = ["--certificate", f"{stranger}.pem", "--key", f"{stranger}.key"]
    lines = probe(world, *options, status=1)
    assert verdicts(lines) == ["ok", "FAILED", "FAILED", "-", "-", "-", "-"]
    assert "our certificate" in line_of(lines, "producer's S2CS")
    assert lines[-1] == "-       release: nothing was reserved"


@pytest.mark.usefixtures("nothing_left")
def test_both_sides_say_why_they_refuse_a_stream(world: World) -> None:
    lines = probe(world, "--rate", "200Gbit", status=1)
    assert verdicts(lines) == ["ok", "ok", "ok", "FAILED", "FAILED", "-", "ok"]
    for side in ("producer", "consumer"):
        refused = line_of(lines, f"{side}'s facility")
        assert "refuses the stream (no-capacity): 1 x 200000 = 200000 Mbit/s were requested" in refused
        assert refused.endswith("request a lower rate, or try again later")
    lines = probe(world, "--num-conn", "9", status=1)
    assert "(no-ports): 9 channels were requested, but 8 ports are free" in line_of(lines, "producer's facility")


@pytest.mark.usefixtures("nothing_left")
def test_an_address_where_nobody_listens_and_a_name_that_nobody_knows_are_told_apart(world: World) -> None:
    nowhere = f"{HOST}:{free_ports()}"
    lines = probe(world, status=1, prod=nowhere, cons="no-such-host.invalid:5000")
    assert verdicts(lines) == ["ok", "FAILED", "FAILED", "-", "-", "-", "-"]
    assert f"producer's S2CS {nowhere}: The connection was refused" in lines[1]
    assert "The host name could not be resolved" in lines[2]


def test_wrong_usage_of_a_probe_ends_with_status_2(world: World) -> None:
    for wrong in (["--seconds", "21"], ["--rate", "fast"], ["--num-conn", "0"]):
        ended = world.s2uc("probe", "--prod", world.lab.s2cs, "--cons", world.centre.s2cs, *wrong, check=False)
        assert ended.returncode == 2
        assert wrong[0] in ended.stderr


def test_a_facility_whose_s2cs_is_down_is_named(fresh_world: MakeWorld) -> None:
    world = fresh_world()
    before = world.footprint()
    world.centre.server.stop()
    lines = probe(world, status=1)
    assert verdicts(lines) == ["ok", "ok", "FAILED", "ok", "-", "-", "ok"]
    assert "The connection was refused: check the address and the port, and that the server is running." in lines[2]
    world.centre.server.start()
    world.centre.server.wait_until_ready()
    world.centre.wait_for_links()
    assert_same(before, world.footprint)


def test_capacity_that_one_side_lacks_fails_that_side_and_releases_the_other(fresh_world: MakeWorld) -> None:
    world = fresh_world(lab={"gateway": {"capacity": "1Gbit"}})
    with world.unchanged():
        lines = probe(world, "--rate", "2Gbit", status=1)
        assert verdicts(lines) == ["ok", "ok", "ok", "FAILED", "ok", "-", "ok"]
        assert "(no-capacity): 1 x 2000 = 2000 Mbit/s were requested, but 1000 Mbit/s are free" in lines[3]
        assert verdicts(probe(world, "--rate", "900Mbit", status=0)) == OK_EVERYWHERE


def between_the_gateways(world: World, *options: str) -> str:
    """Return the reason of a probe in which only the WAN fails."""
    with world.unchanged():
        lines = probe(world, *options, status=1)
        assert verdicts(lines) == ["ok", "ok", "ok", "ok", "ok", "FAILED", "ok"]
    return lines[5]


def test_a_producers_gateway_that_refuses_the_other_is_named_with_the_setting(fresh_world: MakeWorld) -> None:
    world = fresh_world(lab={"gateway": {"wan_networks": ["192.0.2.0/24"]}})
    said = between_the_gateways(world)
    assert re.search(rf"no gateway could be reached at {HOST}:\d+ from {HOST}\.", said)
    assert "to have it in its `wan_networks`" in said
    words = world.centre.gateways[0].words()
    assert re.search(rf"the gateway at {HOST}:\d+ accepts a connection and closes it at once", words)
    assert f"add {HOST}, the address of this gateway, to its `wan_networks`" in words


def test_a_producers_gateway_out_of_reach_is_named_with_how_many_channels_it_is(fresh_world: MakeWorld) -> None:
    world = fresh_world(lab={"gateway": {"wan": {"bind": HOST, "advertise": "127.0.0.2"}}})
    said = between_the_gateways(world, "--num-conn", "2")
    assert "2 of 2 channels (0, 1) have no connection" in said
    assert re.search(r"no gateway could be reached at 127\.0\.0\.2:\d+ from 127\.", said)
    assert "refused" not in said.partition("no gateway could be reached")[2], "what listens where is not told to a user"
    assert re.search(r"to 127\.0\.0\.2:\d+: The connection was refused", world.centre.gateways[0].words())
    assert "`advertise`" in said


def test_a_consumers_gateway_that_may_not_dial_the_other_is_named_with_the_setting(fresh_world: MakeWorld) -> None:
    world = fresh_world(centre={"gateway": {"wan_networks": ["192.0.2.0/24"]}})
    said = between_the_gateways(world)
    assert "outside the wan_networks of this gateway (192.0.2.0/24)" in said


def test_no_target_has_to_lie_in_the_networks_of_the_applications(fresh_world: MakeWorld) -> None:
    elsewhere = {"gateway": {"app_networks": ["192.0.2.0/24"]}}
    world = fresh_world(lab=elsewhere, centre=elsewhere)
    with world.unchanged():
        assert verdicts(probe(world, status=0)) == OK_EVERYWHERE


def test_a_pool_of_gateways_measures_together(fresh_world: MakeWorld) -> None:
    world = fresh_world(lab={"gateways": 2}, centre={"gateways": 3})
    with world.unchanged():
        lines = probe(world, "--num-conn", "6", "--rate", "300Mbit", "--json", status=0)
        found = json.loads(lines[0])["probe"]
    assert 150 < found["mbit_to_consumer"] < 330
    assert 150 < found["mbit_to_producer"] < 330
