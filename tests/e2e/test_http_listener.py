"""The HTTP listener of both daemons: real processes, real sockets, real certificates."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import ssl
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from scistream import timing
from scistream.http.listener import BOUNDS
from scistream.pki.authority import Issued, init_authority, issue
from support import facilities
from support.facilities import HOST, Daemon, Facility, loopback
from support.leased_ports import leased
from support.waiting import PATIENCE, until

ADMINISTRATOR = '[[administrators]]\nissuer = "users/ca.pem"\nidentities = ["scistream:user:{}"]\n'


@pytest.fixture(scope="module")
def ports() -> dict[str, int]:
    return {name: leased.take(1, HOST) for name in ("s2cs", "s2ds", "other")}


@pytest.fixture(scope="module")
def users(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("http")
    init_authority(folder / "users", "Users")
    (folder / "lab").mkdir()
    return folder / "users"


@pytest.fixture(scope="module")
def lab(linux: None, users: Path, ports: dict[str, int]) -> Iterator[Facility]:
    (users.parent / "policy.toml").write_text(ADMINISTRATOR.format("ada"))
    lab = Facility(
        users.parent / "lab",
        "lab",
        users / "ca.pem",
        loopback(),
        settings={"policy": str(users.parent / "policy.toml"), "http": {"listen": f"{HOST}:{ports['s2cs']}"}},
        gateway={"http": {"listen": f"{HOST}:{ports['s2ds']}"}},
    )
    try:
        facilities.start(lab)
        yield lab
    except BaseException:
        facilities.stop(lab)
        raise
    facilities.end(lab)


def get(port: int, path: str = "/health/ready", context: ssl.SSLContext | None = None) -> tuple[int, str]:
    """Return the status and the body of a response."""
    link = connection(port, context)
    try:
        return ask(link, path)
    finally:
        link.close()


def connection(port: int, context: ssl.SSLContext | None = None) -> http.client.HTTPConnection:
    if context is None:
        return http.client.HTTPConnection(HOST, port, timeout=PATIENCE)
    return http.client.HTTPSConnection(HOST, port, timeout=PATIENCE, context=context)


def ask(link: http.client.HTTPConnection, path: str = "/health/ready") -> tuple[int, str]:
    link.request("GET", path, headers={"Accept": "text/plain"})
    response = link.getresponse()
    return response.status, response.read().decode()


def reload(daemon: Daemon, change: Callable[[dict[str, Any]], None], answer: str = " reloaded ") -> str:
    """Change the configuration file, send SIGHUP, and return what the daemon has logged of it."""
    settings = tomllib.loads(daemon.file.read_text())
    change(settings)
    daemon.file.write_text(tomli_w.dumps(settings))
    start = len(daemon.words())
    os.kill(daemon.pid, signal.SIGHUP)
    until(lambda: answer in daemon.words()[start:], lambda: f"{answer!r} is not in:\n{daemon.words()[start:]}")
    return daemon.words()[start:]


def listen(at: str) -> Callable[[dict[str, Any]], None]:
    return lambda settings: settings["http"].update(listen=at)


def client(lab: Facility, issued: Issued | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(lab.authority))
    if issued is not None:
        context.load_cert_chain(issued.certificate, issued.key)
    return context


def test_both_daemons_are_live_and_ready(lab: Facility, ports: dict[str, int]) -> None:
    for name in ("s2cs", "s2ds"):
        assert get(ports[name], "/health/live") == (200, "live\n")
        until(lambda name=name: get(ports[name]) == (200, "ready\n"), lambda name=name: str(get(ports[name])))


def test_a_daemon_that_misses_the_other_is_not_ready_and_says_why(lab: Facility, ports: dict[str, int]) -> None:
    (gateway,) = lab.gateways
    gateway.stop()
    silent = f"not ready: none of its gateways answers: {gateway.name}\n"
    until(lambda: get(ports["s2cs"]) == (503, silent), lambda: str(get(ports["s2cs"])))
    assert get(ports["s2cs"], "/health/live") == (200, "live\n")
    lab.server.stop()
    gateway.start()
    gateway.wait_until_ready()
    alone = "not ready: its controller, scistream:controller:s2cs-controller, is not connected\n"
    assert get(ports["s2ds"]) == (503, alone)
    lab.server.start()
    lab.server.wait_until_ready()
    lab.wait_for_links()
    for name in ("s2cs", "s2ds"):
        until(lambda name=name: get(ports[name]) == (200, "ready\n"), lambda name=name: str(get(ports[name])))


@pytest.mark.parametrize("kind", ["s2cs", "s2ds"])
def test_a_reload_moves_the_listener_and_one_that_fails_changes_nothing(
    lab: Facility, ports: dict[str, int], kind: str
) -> None:
    daemon = lab.server if kind == "s2cs" else lab.gateways[0]
    before = f"{HOST}:{ports[kind]}"
    kept = connection(ports[kind])
    assert ask(kept, "/health/live")[0] == 200
    with socket.create_server((HOST, ports["other"])):
        said = reload(daemon, listen(f"{HOST}:{ports['other']}"), "NOT reloaded")
    assert f"http.listen: '{HOST}:{ports['other']}' cannot be listened on: another program listens on it" in said
    assert ask(kept, "/health/live")[0] == 200
    assert "http.listen" in reload(daemon, listen(f"{HOST}:{ports['other']}"))
    assert get(ports["other"], "/health/live") == (200, "live\n")
    with pytest.raises((OSError, http.client.HTTPException)):
        ask(kept)
    reload(daemon, listen(""))
    with pytest.raises(ConnectionRefusedError):
        get(ports["other"])
    reload(daemon, listen(before))
    assert get(ports[kind], "/health/live") == (200, "live\n")


def test_beyond_loopback_only_administrators_of_the_policy_may_read(
    lab: Facility, users: Path, ports: dict[str, int]
) -> None:
    ada, eve = issue(users, "user", "ada"), issue(users, "user", "eve")
    policy = users.parent / "policy.toml"
    port = ports["other"]
    reload(lab.server, listen(f"0.0.0.0:{port}"))
    kept = connection(port, client(lab, ada))
    assert ask(kept, "/health/live") == (200, "live\n")
    status, body = get(port, context=client(lab, eve))
    assert (status, "scistream:user:eve is not an administrator here" in body) == (403, True)
    for refused in (None, issue(lab.pki, "user", "ada")):  # nobody, and an ada of another authority
        with pytest.raises((OSError, http.client.HTTPException)):
            get(port, context=client(lab, refused))
    with pytest.raises((OSError, http.client.HTTPException)):
        get(port)  # without TLS
    policy.write_text("")
    said = reload(lab.server, lambda _: None, "NOT reloaded")
    assert f"http.listen: 0.0.0.0:{port} is not on loopback, where only administrators of the policy may read" in said
    policy.write_text(ADMINISTRATOR.format("eve"))
    reload(lab.server, lambda _: None)
    with pytest.raises((OSError, http.client.HTTPException)):
        ask(kept)
    assert get(port, "/health/live", context=client(lab, eve))[0] == 200
    policy.write_text(ADMINISTRATOR.format("ada"))
    reload(lab.server, listen(f"{HOST}:{ports['s2cs']}"))


def test_beyond_loopback_only_the_controller_and_named_administrators_read_a_gateway(
    lab: Facility, ports: dict[str, int]
) -> None:
    (gateway,) = lab.gateways
    ada, eve = issue(lab.pki, "user", "ada2"), issue(lab.pki, "user", "eve")
    controller = Issued(lab.pki / "s2cs-controller.pem", lab.pki / "s2cs-controller.key")
    port = ports["other"]

    def change(settings: dict[str, Any]) -> None:
        settings["http"] = {"listen": f"0.0.0.0:{port}", "administrators": ["scistream:user:ada2"]}

    reload(gateway, change)
    for issued in (ada, controller):
        assert get(port, "/health/live", client(lab, issued)) == (200, "live\n")
    status, body = get(port, context=client(lab, eve))
    assert (status, "adds the name to `administrators` in [http]" in body) == (403, True)
    reload(gateway, listen(f"{HOST}:{ports['s2ds']}"))


def test_a_flood_of_connections_keeps_neither_a_reader_nor_a_control_link_out(
    lab: Facility, ports: dict[str, int]
) -> None:
    flood = [socket.create_connection((HOST, ports["s2cs"]), PATIENCE) for _ in range(3 * BOUNDS.links)]
    try:
        until(lambda: try_get(ports["s2cs"]) == 200, lambda: "the flood keeps readers out", 3 * timing.UNPROVEN_GRACE)
        with socket.create_connection(lab.server.address, PATIENCE) as link:
            context = client(lab, None)
            context.set_alpn_protocols(["scistream/1"])
            with context.wrap_socket(link, server_hostname=HOST) as control:
                assert control.version() == "TLSv1.3"
    finally:
        for sock in flood:
            sock.close()


def try_get(port: int) -> int:
    try:
        return get(port, "/health/live")[0]
    except (OSError, http.client.HTTPException):
        return 0


def test_a_request_of_a_page_under_another_name_is_refused(lab: Facility, ports: dict[str, int]) -> None:
    link = connection(ports["s2cs"])
    link.request("GET", "/health/ready", headers={"Host": "evil.example"})
    assert link.getresponse().status == 421
    link.close()


def test_json_says_whether_it_is_ready(lab: Facility, ports: dict[str, int]) -> None:
    link = connection(ports["s2cs"])
    link.request("GET", "/health/ready", headers={"Accept": "application/json"})
    assert json.loads(link.getresponse().read()) == {"ready": True, "reasons": []}
    link.close()
