"""Work on a facility while streams run: gateways are emptied before they are stopped, and settings are reloaded."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from harness import World, free_ports, refused_request
from many_streams import ManyStreams
from test_certificates import reload
from tomli_w import dumps

from scistream.config import load
from scistream.pki.revocation import make_crl
from scistream.s2cs.settings import S2CSConfig
from scistream.s2ds.settings import S2DSConfig
from support.facilities import HOST, Daemon, Gateway
from support.programs import Program
from support.waiting import until

OPERATORS = """
[[rules]]
name = "all"
issuer = "users/ca.pem"
identities = ["scistream:user:ada"]
roles = ["PROD", "CONS"]

[[administrators]]
issuer = "users/ca.pem"
identities = ["scistream:user:ada"]
"""


@pytest.fixture(scope="module")
def world(linux: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    (folder / "policy.toml").write_text(OPERATORS)
    lab = {"gateways": 2, "ports": 24, "settings": {"policy": str(folder / "policy.toml")}}
    with World(folder, lab=lab, centre={"ports": 24}) as world:
        yield world


def drain(world: World, gateway: Gateway, *options: str) -> Program:
    """Start `scistream drain`."""
    config = str(world.folder / "config" / "scistream" / "s2uc.toml")
    command = [str(world.programs / "scistream"), "drain", "--at", world.lab.s2cs, gateway.name, "--config", config]
    return world.start(*command, *options)


def test_twenty_streams_end_well_or_at_the_deadline_while_new_ones_go_elsewhere(world: World) -> None:
    first, second = world.lab.gateways
    ended = drain(world, second).end()
    assert ended.stdout == f"gateway {second.name} is drained: no stream is left\n"
    with ManyStreams(world, 10) as leaving, ManyStreams(world, 10) as staying:
        assert all(first.offers(each["prod"]) for each in leaving.streams + staying.streams)
        assert drain(world, second, "--undo").end().stdout == f"gateway {second.name} is not drained\n"
        watching = drain(world, first, "--json")
        started = json.loads(watching.line())
        assert (started["gateway"], started["streams"], started["seconds_left"]) == (first.name, 20, None)
        with ManyStreams(world, 1) as elsewhere:
            assert all(second.offers(each["prod"]) for each in elsewhere.streams)
            assert elsewhere.traffic.finish() == "whole"
        listed = world.s2uc("list", "--at", world.lab.s2cs)
        assert f"gateway {first.name} is being drained: no new stream begins there" in listed.stderr
        assert len(listed.stdout.splitlines()) == 1 + 20 + 0
        assert leaving.traffic.finish() == "whole"
        leaving.release()
        staying.traffic.wait_for_more()
        at_deadline = drain(world, first, "--within", "1s")
        reasons = {told["msg"] for told in staying.ends().values()}
        ended, last = at_deadline.end(), watching.end()
        assert staying.traffic.finish() == "reset"
    assert ended.stdout == f"gateway {first.name} is drained: no stream is left\n"
    left = [json.loads(line)["streams"] for line in last.stdout.splitlines()]
    assert left == sorted(left, reverse=True)
    assert left[-1] == 0
    [reason] = reasons
    assert reason == (
        f"gateway {first.name} is being drained by scistream:user:ada, an administrator of this facility, and the time "
        "for its streams to end is over: request a new stream"
    )
    uid = staying.streams[0]["uid"]
    [side] = json.loads(world.s2uc("status", uid, "--at", world.lab.s2cs, "--json").stdout)
    assert side["last_error"] == {"code": "released", "msg": reason}
    trail = [json.loads(line) for line in world.lab.store.with_name("s2cs.audit.jsonl").read_text().splitlines()]
    drains = [(one["gateway"], one["action"], one["within"]) for one in trail if one["event"] == "drain"]
    assert drains == [
        (second.name, "start", None),
        (second.name, "undo", None),
        (first.name, "start", None),
        (first.name, "start", 1.0),
    ]
    ends = {one["uid"]: (one["code"], one["reason"]) for one in trail if one["event"] == "end"}
    assert {ends[each["uid"]] for each in staying.streams} == {("released", reason)}
    assert drain(world, first, "--undo").end()


# -- reloads under streams


def copied(file: Path) -> str:
    """Return the name of a copy of a file, beside it."""
    copy = file.with_name(f"copy-of-{file.name}")
    shutil.copy2(file, copy)
    return str(copy)


def all_keys(settings: dict[str, Any], place: str = "") -> set[str]:
    """Return the keys of settings, those in sections with the name of the section."""
    found = set()
    for key, value in settings.items():
        found |= all_keys(value, f"{place}{key}.") if isinstance(value, dict) else {place + key}
    return found


def others_of_server(world: World) -> dict[str, Any]:
    """Return another value for every setting of the lab's S2CS that a reload can change."""
    settings = tomllib.loads(world.lab.server.file.read_text())
    users, pki, controller = world.folder / "users", world.lab.pki, settings["controller"]
    for folder in (users, pki):
        make_crl(folder)
    return {
        **settings,
        "audit": str(world.folder / "other.jsonl"),
        **{key: copied(Path(settings[key])) for key in ("certificate", "key", "policy")},
        "authorities": [copied(users / "ca.pem")],
        "crl": [str(users / "crl.pem")],
        "controller": {
            **{key: copied(Path(controller[key])) for key in ("certificate", "key")},
            "authorities": [copied(pki / "ca.pem")],
            "crl": [str(pki / "crl.pem")],
        },
        "gateways": [*settings["gateways"], {"name": "dtn9", "address": f"{HOST}:{free_ports()}"}],
        **{"expires": "23h", "longest_expires": "6d", "hello_timeout": "50m", "release_broken_after": "1h"},
        "limits": {**LIMITS, "streams_per_identity": 99, "requests_per_minute": 999},
        **OF_BOTH,
        "http": {"listen": f"{HOST}:{free_ports()}", "stream_labels": True},
    }


def others_of_gateway(world: World, *, accept: bool) -> dict[str, Any]:
    """Return another value for every setting of the lab's first gateway that a reload can change, but its controller.

    :param accept: whether to change `wan.dial`, or else `wan.accept`: one of them has to be true.
    """
    gateway, pki = world.lab.gateways[0], world.lab.pki
    settings, first = tomllib.loads(gateway.file.read_text()), free_ports(8)
    make_crl(pki)
    leg = {"bind": "127.0.0.2", "advertise": "127.0.0.3", "congestion": "reno"}
    networks = ["127.0.0.0/8", "::1/128", "10.0.0.0/8"]
    return {
        **settings,
        **{key: copied(Path(settings[key])) for key in ("certificate", "key")},
        "authorities": [copied(pki / "ca.pem")],
        "crl": [str(pki / "crl.pem")],
        **{"ports": f"{first}-{first + 7}", "chosen_ports": f"{first}", "capacity": "90Gbit"},
        "lan": leg,
        "wan": {**leg, "ready": 3, "accept": accept, "dial": not accept, "proxy": "http://127.0.0.1:9"},
        **{"app_networks": networks, "wan_networks": networks, "wan_timeout": "50s", "wan_cipher": "chacha20"},
        "limits": {
            **LIMITS,
            **{"half_open": 60, "connections": 5000, "unread": "100M", "owner_share": 70},
            "controller_networks": ["127.0.0.0/8"],
        },
        **OF_BOTH,
        "http": {"listen": f"{HOST}:{free_ports()}", "stream_labels": True, "administrators": ["scistream:user:ada"]},
    }


LIMITS = {
    "links": 4000,
    "links_per_address": 500,
    "unproven": 500,
    "unproven_per_address": 31,
    "links_per_identity": 63,
    "commands_per_second": 199,
    "failures": 19,
    "longest_refusal": "29s",
}
OF_BOTH = {"shutdown_grace": "1s", "log_format": "text", "log_level": "debug"}


def test_reloads_of_every_setting_disturb_no_byte_of_ten_streams(world: World) -> None:
    server, gateway = world.lab.server, world.lab.gateways[0]
    before = {daemon: daemon.file.read_text() for daemon in (server, gateway)}
    rounds: list[dict[Daemon, str]] = [
        {server: dumps(others_of_server(world)), gateway: dumps(others_of_gateway(world, accept=accept))}
        for accept in (True, False)
    ]
    changed: dict[Daemon, set[str]] = {server: set(), gateway: set()}
    with ManyStreams(world, 10) as streams:
        try:
            for files in (*rounds, *rounds, before):
                for daemon, text in files.items():
                    daemon.file.write_text(text)
                    log = reload(daemon)
                    assert "a restart is needed" not in log
                    changed[daemon].update(log.partition("settings that changed: ")[2].split("\n")[0].split(", "))
                streams.traffic.wait_for_more()
        finally:
            for daemon, text in before.items():
                daemon.file.write_text(text)
        assert streams.traffic.finish() == "whole"
    of_server = all_keys(msgspec.to_builtins(load(server.file, S2CSConfig)))
    of_gateway = all_keys(msgspec.to_builtins(load(gateway.file, S2DSConfig)))
    assert changed[server] - {"none"} == of_server - {"listen", "state", "insecure"}
    stay = {"listen", "insecure", "elements", "order", "wan.multipath", "wan.paths", "controller"}
    assert changed[gateway] - {"none"} == of_gateway - stay


# -- daemons that are told to stop


def test_a_gateway_that_is_told_to_stop_waits_until_its_stream_has_ended(world: World) -> None:
    first, second = world.lab.gateways
    before = second.file.read_text()
    assert drain(world, first).end()
    second.file.write_text(dumps({**tomllib.loads(before), "shutdown_grace": "1h"}))
    assert "settings that changed: shutdown_grace" in reload(second)
    program = second.program
    assert program is not None
    with ManyStreams(world, 1) as streams:
        assert second.offers(streams.streams[0]["prod"])
        os.kill(second.pid, signal.SIGTERM)
        until(
            lambda: f"gateway {second.name} is about to stop" in world.s2uc("list", "--at", world.lab.s2cs).stderr,
            world.lab.server.words,
        )
        refused = refused_request(world)
        assert f"no new stream begins here: gateways {first.name}, {second.name} of this facility" in refused
        streams.traffic.wait_for_more()
        assert streams.traffic.finish() == "whole"
        assert program.process.poll() is None
    assert program.end(status=0)
    second.program = None
    second.file.write_text(before)
    second.start()
    second.wait_until_ready()
    world.lab.wait_for_links()
    assert drain(world, first, "--undo").end()
