"""Configuration files that change while their daemon runs: SIGHUP applies all changes that it can, or none."""

from __future__ import annotations

import socket
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from harness import Requested, World
from test_certificates import expired_crl, reload, said_since, to
from test_refusals import RawLink, a_request, ada, everything
from test_survival import flowing

from scistream.pki.authority import issue
from scistream.pki.revocation import make_crl, revoke
from scistream.protocol.messages import PROD
from support.applications import MIB, accept, connect, noise, receive, sha256
from support.facilities import HOST, Daemon
from support.waiting import until

NOISE = noise(MIB + 7)
NOT_RELOADED = "NOT reloaded, the previous settings stay in force: "


@pytest.fixture(scope="module")
def world(linux: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    leg = {"bind": HOST, "advertise": "localhost"}
    with World(tmp_path_factory.mktemp("world"), lab={"gateways": 2, "gateway": {"wan": leg}}) as world:
        yield world


def rewrite(daemon: Daemon, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the settings in a configuration file; the daemon does not hear of it."""
    settings = tomllib.loads(daemon.file.read_text())
    change(settings)
    daemon.file.write_text(tomli_w.dumps(settings))


@contextmanager
def changed(daemon: Daemon, **settings: Any) -> Iterator[str]:
    """Reload a daemon with other settings; yield its log of the reload, and restore the settings at the end."""
    before = daemon.file.read_text()
    rewrite(daemon, lambda all_: all_.update(settings))
    try:
        yield reload(daemon)
    finally:
        daemon.file.write_text(before)
        reload(daemon)


@contextmanager
def not_reloaded(daemon: Daemon, change: Callable[[dict[str, Any]], None]) -> Iterator[str]:
    """Reload a daemon with settings that it refuses; yield its log of the reload, and restore the file at once."""
    before = daemon.file.read_text()
    rewrite(daemon, change)
    try:
        log = reload(daemon, NOT_RELOADED)
        time.sleep(0.2)  # more lines may come
        assert " reloaded " not in log
        yield log
    finally:
        daemon.file.write_text(before)


def asked(world: World, **wishes: Any) -> dict[str, Any]:
    """Return the answer of the lab's S2CS to a request; release the stream if it was granted."""
    request = {**a_request(), **wishes}
    with to(world.lab.server, world.lab, ada(world)) as link:
        answer = link.ask("REQ", **request)
        if answer["cmd"] == "RESP":
            assert link.ask("REL", uid=request["uid"], role=PROD, seq=2)["state"] == "Released"
    return answer


def is_refused(link: RawLink) -> bool:
    with link:
        return link.hear() is None


# -- what counts at once


def test_a_crl_that_was_added_to_the_file_of_an_s2cs_is_heeded(world: World) -> None:
    users, server = world.folder / "users", world.lab.server
    eve = issue(users, "user", "eve@lab.example")
    make_crl(users)
    revoke(users, "eve@lab.example")
    with to(server, world.lab, eve) as link:
        assert link.ask("Status", **everything())["cmd"] == "RESP"
        with changed(server, crl=[str(users / "crl.pem")]) as log:
            assert "settings that changed: crl" in log
            last = link.hear()
            assert last is not None
            assert "it was revoked on" in last["msg"]
            assert is_refused(to(server, world.lab, eve))
            with to(server, world.lab, ada(world)) as ours:
                assert ours.ask("Status", **everything())["cmd"] == "RESP"


def test_a_crl_that_was_added_to_the_file_of_a_gateway_is_heeded(world: World) -> None:
    (gateway,), pki = world.centre.gateways, world.centre.pki
    make_crl(pki)
    expired_crl(pki)
    controller = issue(pki, "controller", "another")
    with changed(gateway, crl=[str(pki / "crl.pem")]) as log:
        assert "has expired" in log
        assert is_refused(to(gateway, world.centre, controller))
        make_crl(pki)
        reload(gateway)
        with to(gateway, world.centre, controller) as link:
            last = link.hear()
            assert last is not None
            assert last["code"] == "not-authorized", "its certificate is let in, and it is not the controller"


def test_the_files_of_certificates_and_the_policy_may_have_other_paths(world: World, tmp_path: Path) -> None:
    server, shown = world.lab.server, issue(world.lab.pki, "server", "moved", [HOST])
    policy = tmp_path / "policy.toml"
    policy.write_text(
        f'[[rules]]\nname = "one"\nissuer = {str(world.folder / "users" / "ca.pem")!r}\n'
        'identities = ["scistream:user:ada"]\nroles = ["PROD"]\nrate = "5Mbit"\n'
    )
    certificate = {"certificate": str(shown.certificate), "key": str(shown.key)}
    with changed(server, policy=str(policy), **certificate):
        with to(server, world.lab, ada(world)) as link:
            names = link.sock.getpeercert()
            assert names is not None
            assert link.sock.getpeercert(binary_form=True) == _der(shown.certificate)
        assert asked(world, rate=5.0)["cmd"] == "RESP"
        assert asked(world, rate=6.0)["code"] == "not-authorized"
    assert asked(world, rate=6.0)["cmd"] == "RESP"


def _der(file: Path) -> bytes:
    import ssl

    return ssl.PEM_cert_to_DER_cert(
        file.read_text().partition("-----END CERTIFICATE-----")[0] + "-----END CERTIFICATE-----\n"
    )


def test_other_lives_and_limits_of_an_s2cs_count_for_what_is_asked_from_then_on(world: World) -> None:
    server = world.lab.server
    with changed(server, expires="1h", longest_expires="2h", limits={"links_per_identity": 1}) as log:
        assert "limits.links_per_identity" in log
        assert "longest_expires" in log
        assert asked(world, expires=7201.0)["code"] == "not-authorized"
        with to(server, world.lab, ada(world)) as link:
            assert link.ask("Status", **everything())["cmd"] == "RESP"
            with to(server, world.lab, ada(world)) as second:
                last = second.hear()
                assert last is None or last["cmd"] == "ERROR"
            assert link.ask("Status", **everything(2))["cmd"] == "RESP"
    assert asked(world, expires=7201.0)["cmd"] == "RESP"


def test_a_smaller_capacity_of_a_gateway_counts_for_new_streams_and_leaves_those_that_it_has(world: World) -> None:
    (gateway,) = world.centre.gateways
    with flowing(world) as stream:
        with changed(gateway, capacity="150Mbit") as log:
            assert "settings that changed: capacity" in log
            refused = world.s2uc("request", "--prod", world.lab.s2cs, "--cons", world.centre.s2cs, "--rate", "60Mbit",
                                 check=False)  # fmt: skip
            assert refused.returncode == 1
            assert "Mbit/s" in refused.stderr
            stream.exchange.wait_for_more()
        with until(lambda: granted(world, "60Mbit"), lambda: "its S2CS does not hear of the capacity"):
            pass
        assert stream.exchange.finish() == "whole"


def granted(world: World, rate: str) -> Requested | None:
    """Request a stream; return None if an S2CS refuses it by what it knew last of the capacity of its gateways."""
    try:
        return world.request(1, rate)
    except AssertionError as refused:
        if "Mbit/s" not in str(refused):
            raise
        return None


def carries(listener: str, producer: socket.socket) -> bool:
    """Return True if a new connection of the consumer reaches the producer, with all bytes; False if it is reset."""
    try:
        with connect(listener) as sock:
            sock.settimeout(30)
            sock.sendall(NOISE[:100])
            with accept(producer) as there:
                there.settimeout(30)
                there.sendall(NOISE)
                there.shutdown(socket.SHUT_WR)
                here = receive(sock)
                return sha256(here) == sha256(NOISE)
    except (ConnectionError, TimeoutError):
        return False


@pytest.mark.parametrize(
    ("side", "network"), [("centre", "app_networks"), ("centre", "wan_networks"), ("lab", "wan_networks")]
)
def test_other_networks_of_a_gateway_count_for_new_connections_of_streams_that_are_there(
    world: World, side: str, network: str
) -> None:
    facility = world.centre if side == "centre" else world.lab
    with flowing(world) as other, socket.create_server((HOST, 0)) as producer:
        producer.settimeout(3)
        with world.stream([f"{HOST}:{producer.getsockname()[1]}"], rate="100Mbit") as stream:
            assert carries(stream.listeners[0], producer)
            before = [gateway.file.read_text() for gateway in facility.gateways]
            for gateway in facility.gateways:
                rewrite(gateway, lambda all_: all_.update({network: ["127.1.0.0/16"]}))
                assert f"settings that changed: {network}" in reload(gateway)
            assert not carries(stream.listeners[0], producer)
            other.exchange.wait_for_more()
            for gateway, text in zip(facility.gateways, before, strict=True):
                gateway.file.write_text(text)
                reload(gateway)
            assert carries(stream.listeners[0], producer)
        assert other.exchange.finish() == "whole"


# -- what cannot


def test_a_setting_that_needs_a_restart_is_named_and_the_others_count(world: World) -> None:
    server, (gateway,) = world.lab.server, world.centre.gateways
    state = str(server.file.with_name("other.sqlite"))
    with changed(server, listen="127.0.0.1:2", state=state, longest_expires="2h", expires="1h") as log:
        (line,) = [line for line in log.splitlines() if "a restart is needed" in line]
        assert line.endswith(": listen, state")
        assert asked(world, expires=7201.0)["code"] == "not-authorized"
    wan = {**tomllib.loads(gateway.file.read_text())["wan"], "paths": [HOST]}
    with changed(gateway, elements=3, order=False, wan=wan, capacity="9Gbit") as log:
        (line,) = [line for line in log.splitlines() if "a restart is needed" in line]
        assert line.endswith(": elements, order, wan.paths")
        assert "settings that changed: capacity" in log
    assert "a restart is needed" not in reload(gateway)


def wrong(settings: dict[str, Any]) -> None:
    settings["longest_expires"] = "2h"
    settings["expires"] = "for ever"
    settings["limits"] = {"linkz": 3}


def missing_files(settings: dict[str, Any]) -> None:
    settings["longest_expires"] = "2h"
    settings["policy"] = "/nowhere/policy.toml"
    settings["crl"] = ["/nowhere/crl.pem"]


@pytest.mark.parametrize(
    ("change", "lines"),
    [(wrong, ["expires: 'for ever' is not a time", "limits.linkz: unknown key"]),
     (missing_files, ["/nowhere/policy.toml", "/nowhere/crl.pem"])],
)  # fmt: skip
def test_a_wrong_file_changes_nothing_and_each_problem_has_a_line(
    world: World, change: Callable[[dict[str, Any]], None], lines: list[str]
) -> None:
    server = world.lab.server
    with not_reloaded(server, change) as log:
        start = server.words().rindex(log)  # more may have been added since
        until(lambda: said_since(server, start).count(NOT_RELOADED) == len(lines), server.words)
        told = [line for line in said_since(server, start).splitlines() if NOT_RELOADED in line]
        for words in lines:
            assert sum(words in line for line in told) == 1
        assert asked(world, expires=7201.0)["cmd"] == "RESP"
    server_text = server.file.read_text()
    server.file.write_text("listen = ")
    try:
        assert "is not TOML" in reload(server, NOT_RELOADED)
    finally:
        server.file.write_text(server_text)
    reload(server)


@pytest.mark.parametrize("which", ["authorities", "policy"])
def test_a_broken_file_of_authorities_or_policy_leaves_those_in_force(world: World, tmp_path: Path, which: str) -> None:
    server, authority = world.lab.server, tmp_path / "users.pem"
    authority.write_bytes((world.folder / "users" / "ca.pem").read_bytes())
    policy = tmp_path / "policy.toml"
    policy.write_text(
        f'[[rules]]\nname = "one"\nissuer = {str(world.folder / "users" / "ca.pem")!r}\n'
        'identities = ["scistream:user:ada"]\nroles = ["PROD"]\nrate = "5Mbit"\n'
    )
    with changed(server, authorities=[str(authority)], policy=str(policy)):
        for good in (authority, policy):
            if good.name.startswith("users") == (which == "authorities"):
                whole = good.read_bytes()
                good.write_bytes(whole[: len(whole) // 2])
                assert str(good) in reload(server, NOT_RELOADED)
                assert asked(world, rate=5.0)["cmd"] == "RESP"
                assert asked(world, rate=6.0)["code"] == "not-authorized"
                good.write_bytes(whole)


def test_a_policy_without_a_rule_refuses_everybody_and_causes_a_warning(world: World, tmp_path: Path) -> None:
    empty = tmp_path / "policy.toml"
    empty.write_bytes(b"")
    with changed(world.lab.server, policy=str(empty)) as log:
        assert f"policy {empty} has no rules, so every request is refused" in log
        assert asked(world)["code"] == "not-authorized"


# -- gateways come and go


def without(name: str) -> Callable[[dict[str, Any]], None]:
    def change(settings: dict[str, Any]) -> None:
        settings["gateways"] = [one for one in settings["gateways"] if one["name"] != name]
        settings["longest_expires"] = "25h"

    return change


def test_a_gateway_with_streams_stays_and_one_without_goes_and_comes_again(fresh_world: Callable[..., World]) -> None:
    world = fresh_world(lab={"gateways": 2})
    server, (first, second) = world.lab.server, world.lab.gateways
    whole = server.file.read_text()
    with flowing(world, 2) as stream:
        assert len(first.ports_in_use()) == len(second.ports_in_use()) > 0
        with not_reloaded(server, without(second.name)) as log:
            assert f"gateways: '{second.name}' is missing, and may hold 1 stream: {stream.uid} (PROD)" in log
            assert asked(world, expires=100_000.0)["cmd"] == "RESP"
            stream.exchange.wait_for_more()

            server.stop()
            server.start()
            assert server.program is not None
            refused = server.program.end(status=2)
            assert f"'{second.name}' is missing, and may hold 1 stream: {stream.uid} (PROD)" in refused.stderr
            server.program = None
            server.log.with_suffix(".err").unlink()  # `words` gives it after the log, of which `reload` reads the end
        server.start()
        server.wait_until_ready()
        stream.exchange.wait_for_more()
        assert stream.exchange.finish() == "whole"
        stream.release()
    for gateway in (first, second):
        until(lambda g=gateway: not g.ports_in_use(), lambda: "ports are held after the release")

    rewrite(server, without(second.name))
    log = reload(server)
    assert f"gateway {second.name} was removed from the pool" in log
    with world.request(2, "100Mbit"):
        assert len(first.ports_in_use()) == 2
        assert not second.ports_in_use()

    server.file.write_text(whole)
    start = len(server.words())
    reload(server)
    until(lambda: f"gateway {second.name} is connected" in said_since(server, start), server.words)
    with flowing(world, 2) as stream:
        assert len(second.ports_in_use()) > 0
        stream.exchange.wait_for_more()
        assert stream.exchange.finish() == "whole"
