"""A facility whose policy has ten thousand rules.

Each limit refuses with the name of its rule, beside a control that succeeds. Other tests check which streams an
administrator, a plain user and a namesake may see and release.

The daemons' descriptors, ports, live streams and memory are compared before and after each test (`nothing_left`).
"""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from harness import Requested, World, free_ports, together

from scistream.pki.authority import Issued, init_authority, issue
from scistream.protocol.messages import CONS, PROD
from support.applications import accept, address_of, listen, noise, receive_exactly
from support.facilities import HOST
from support.waiting import PATIENCE, until

pytestmark = pytest.mark.usefixtures("nothing_left")

TARGET_PORT = free_ports()
LIMITS: dict[str, dict[str, Any]] = {
    "nothing": {"roles": []},
    "roles": {"roles": ["CONS"]},
    "rate": {"rate": "100Mbit"},
    "total": {"total_rate": "150Mbit"},
    "channels": {"num_conn": 2},
    "streams": {"streams": 1},
    "life": {"expires": "1h"},
    "volume": {"bytes_per_day": "1M"},
    "targets": {"targets": [f"{HOST}/32:{TARGET_PORT}"]},
    "namesake": {},
}
"""One user for each, and one rule."""

MANY = 10_000


def section(kind: str, **fields: Any) -> str:
    return f"[[{kind}]]\n{tomli_w.dumps(fields)}"


def policy(visitors: Path) -> str:
    """Write the policy file beside the folder of the users' authority."""
    rules: list[dict[str, Any]] = [
        {"name": f"filler-{n}", "identities": [f"*@d{n}.example"], "roles": ["PROD"]} for n in range(MANY)
    ]
    rules.append(
        {"name": "everybody", "identities": ["*@lab.example", "scistream:user:ada"], "roles": ["PROD", "CONS"]}
    )
    for name, limits in LIMITS.items():
        limited = {"name": f"limit-{name}", "identities": [f"{name}@lab.example"], "roles": ["PROD", "CONS"]}
        rules.append({**limited, **limits})
    text = "\n".join(section("rules", issuer="users/ca.pem", **rule) for rule in rules)
    visitor = {"name": "visitors", "identities": ["namesake@lab.example"], "roles": ["PROD"], "rate": "10Mbit"}
    text += section("rules", issuer=str(visitors), **visitor)
    return text + section("administrators", issuer="users/ca.pem", identities=["operator@lab.example"])


@pytest.fixture(scope="module")
def world(linux: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Run a world where only the producer's facility has the policy, and both trust a second authority."""
    folder = tmp_path_factory.mktemp("world")
    visitors = init_authority(folder / "visitors", "Visitors").certificate
    trusting = {"authorities": [str(folder / "users/ca.pem"), str(visitors)]}
    settings = {"policy": str(folder / "policy.toml"), **trusting}
    (folder / "policy.toml").write_text(policy(visitors))
    with World(folder, lab={"settings": settings}, centre={"settings": trusting}, timing={"POLL": 3.0}) as world:
        yield world


def as_user(world: World, name: str, authority: str = "users") -> list[str]:
    """Return the options of a command that the named user of the lab runs."""
    folder = world.folder / authority
    name = f"{name}@lab.example"
    files = Issued(folder / f"{name}.pem", folder / f"{name}.key")
    if not files.certificate.exists():
        issue(folder, "user", name)
    return ["--certificate", str(files.certificate), "--key", str(files.key)]


def refusal(world: World, *options: str, rate: str = "100Mbit") -> str:
    """Return the error line of a request that the policy refuses."""
    with world.unchanged():
        between = ["--prod", world.lab.s2cs, "--cons", world.centre.s2cs]
        ended = world.start_s2uc("request", *between, "--rate", rate, *options).end(status=1)
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: not-authorized: producer side: ")
    return line


@contextmanager
def reserved(world: World, *options: str, num_conn: int = 1, rate: str = "100Mbit") -> Iterator[Requested]:
    """Request a stream that both sides reserve and nobody uses; remove it at the end in any case."""
    requested = world.request(num_conn, rate, *options)
    try:
        yield requested
    finally:
        if requested.program.process.poll() is None:
            requested.program.process.send_signal(signal.SIGINT)
        requested.program.end(status=1)


def test_the_log_says_which_policy_is_in_force(world: World) -> None:
    count = MANY + len(LIMITS) + 2
    assert (
        f"policy {world.folder / 'policy.toml'}: {count} rules; everything else is refused" in world.lab.server.words()
    )
    assert "no policy: every user of a trusted authority may request streams" in world.centre.server.words()


# -- limits

TOO_MUCH: list[tuple[str, list[str], str, str]] = [
    ("rate", [], "101Mbit", "allows at most 100 Mbit/s per stream, but 101 was requested"),
    ("total", [], "151Mbit", "allows at most 150 Mbit/s over all streams"),
    ("channels", ["--num-conn", "3"], "100Mbit", "allows at most 2 channels per stream, but 3 were requested"),
    ("life", ["--expires", "61m"], "100Mbit", "allows a life of at most 1h, but 61m was requested"),
]
JUST_ENOUGH = {"channels": ["--num-conn", "2"], "life": ["--expires", "1h"]}


@pytest.mark.parametrize(("name", "options", "rate", "words"), TOO_MUCH, ids=[each[0] for each in TOO_MUCH])
def test_more_than_a_rule_allows_is_refused_by_its_name(
    world: World, name: str, options: list[str], rate: str, words: str
) -> None:
    user = as_user(world, name)
    line = refusal(world, *user, *options, rate=rate)
    assert f"`limit-{name}` {words}" in line
    with reserved(world, *user, *JUST_ENOUGH.get(name, [])):
        pass


def test_a_role_that_a_rule_does_not_have_is_refused_by_its_name(world: World) -> None:
    assert "`limit-roles` allows the role CONS, but PROD was requested" in refusal(world, *as_user(world, "roles"))
    assert "`limit-nothing` allows nothing, but PROD was requested" in refusal(world, *as_user(world, "nothing"))
    with reserved(world, *as_user(world, "somebody")):
        pass


def test_a_stream_too_many_is_refused_until_another_is_released(world: World) -> None:
    user = as_user(world, "streams")
    with reserved(world, *user):
        assert "`limit-streams` allows at most 1 streams at once, and 1 exist" in refusal(world, *user)
        with reserved(world, *as_user(world, "somebody")):
            pass
    with reserved(world, *user):
        pass


def test_a_user_without_a_rule_is_refused_though_the_facility_trusts_their_authority(world: World) -> None:
    line = refusal(world, *as_user(world, "somebody", "visitors"))
    assert "no rule of this facility's policy is for somebody@lab.example (sha256:" in line
    with reserved(world, *as_user(world, "somebody")):
        pass


def test_a_producer_elsewhere_than_its_rule_allows_is_refused_at_its_hello(world: World) -> None:
    with reserved_until_it_streams(world, *as_user(world, "targets")) as requested:
        for target in (f"{HOST}:{free_ports()}", f"[::1]:{TARGET_PORT}", f"127.0.0.2:{TARGET_PORT}"):
            ended = world.prod(requested.join[PROD], [target], ["true"]).end(status=1)
            (line,) = ended.stderr.splitlines()
            assert line.startswith("error: target-refused: ")
            assert f"`limit-targets` allows the targets {HOST}/32:{TARGET_PORT}, but not {target}" in line
            assert requested.state(PROD) == "Listening"
        with socket.create_server((HOST, TARGET_PORT)):
            world.prod(requested.join[PROD], [f"{HOST}:{TARGET_PORT}"]).end()
            requested.streaming()


@contextmanager
def reserved_until_it_streams(world: World, *options: str) -> Iterator[Requested]:
    requested = world.request(1, "100Mbit", *options)
    try:
        yield requested
    finally:
        world.s2uc("release", requested.uid, *options)


def test_a_day_s_volume_that_is_used_up_ends_the_stream_and_refuses_the_next(world: World) -> None:
    """Both ends are at the facility, so that the policy ends both."""
    user = as_user(world, "volume")
    data = noise(2**21)
    with listen() as detector:
        requested = world.request(1, "1Gbit", *user, cons=world.lab)
        consumer = world.cons(requested.join[CONS])
        world.prod(requested.join[PROD], [address_of(detector)]).end()
        requested.streaming()
        (listener,) = json.loads(consumer.end().stdout)["listeners"]
        host, _, port = listener.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=PATIENCE) as analysis, accept(detector) as camera:
            together(lambda: camera.sendall(data), lambda: receive_exactly(analysis, len(data)))
            with pytest.raises(ConnectionResetError):
                analysis.recv(1)
    until(lambda: set(states_of(world, requested.uid)) == {"Released"}, lambda: world.lab.states())
    status = json.loads(world.s2uc("status", requested.uid, *user, "--json").stdout)["streams"][requested.uid]
    for side in status.values():
        assert side["last_error"]["code"] == "not-authorized"
        assert "`limit-volume` allows 1M per day" in side["last_error"]["msg"]
    assert "`limit-volume` allows 1M per day" in refusal(world, *user)
    world.s2uc("release", requested.uid, *user)


def states_of(world: World, uid: str) -> list[str]:
    return [state for (one, _), state in world.lab.states().items() if one == uid]


# -- whose streams


def lists(world: World, user: list[str]) -> dict[str, str]:
    """Return what `s2uc list --at` shows to a user of the lab: each stream and its owner."""
    found = json.loads(world.s2uc("list", "--at", world.lab.s2cs, "--json", *user).stdout)
    return {one["uid"]: one["owner"] for one in found}


def test_an_administrator_sees_and_releases_another_s_stream_and_a_plain_user_does_not(world: World) -> None:
    operator, eve = as_user(world, "operator"), as_user(world, "eve")
    with reserved(world) as requested:
        assert lists(world, eve) == {}
        refused = world.s2uc("release", "--at", world.lab.s2cs, requested.uid, *eve, check=False)
        assert refused.returncode == 1
        assert "error: unknown-uid: you have no stream " in refused.stderr
        assert requested.state(PROD) == "Listening"

        assert lists(world, operator)[requested.uid].startswith("scistream:user:ada (sha256:")
        table = world.s2uc("list", "--at", world.lab.s2cs, *operator).stdout
        assert requested.uid in table
        assert "OWNER" in table
        done = world.s2uc("release", "--at", world.lab.s2cs, requested.uid[:13], *operator)
        assert done.stdout.startswith(f"released {requested.uid} (PROD) of scistream:user:ada (sha256:")
        ended = requested.program.end(status=1)
        assert "released by operator@lab.example, an administrator of this facility" in ended.stderr
        assert requested.state(PROD) == requested.state(CONS) == "Released"
        assert lists(world, operator) == {}


def test_an_administrator_looks_at_another_s_stream_without_its_other_facility(world: World) -> None:
    operator, eve = as_user(world, "operator"), as_user(world, "eve")
    data = noise(2**20)
    with listen() as detector, world.stream([address_of(detector)]) as stream:
        with stream.connect() as analysis, accept(detector) as camera:
            together(lambda: camera.sendall(data), lambda: receive_exactly(analysis, len(data)))

        def told() -> dict[str, object]:
            (side,) = json.loads(world.s2uc("status", "--at", world.lab.s2cs, stream.uid, "--json", *operator).stdout)
            return dict(side)

        until(lambda: sum(one["bytes_to_consumer"] for one in told()["figures"]) == len(data), told)  # type: ignore
        side = told()
        assert str(side["owner"]).startswith("scistream:user:ada (sha256:")
        assert (side["gateways"], side["app_listeners"]) == (["lab-s2ds-0"], [address_of(detector)])
        text = world.s2uc("status", "--at", world.lab.s2cs, stream.uid[:8], *operator).stdout
        (listener,) = side["listeners"]  # type: ignore[misc]
        for part in ("scistream:user:ada", "lab-s2ds-0", address_of(detector), listener, "0.001"):
            assert part in text
        assert side["csr"] == ""
        refused = world.s2uc("status", "--at", world.lab.s2cs, stream.uid, *eve, check=False)
        assert refused.returncode == 1
        assert "lab-s2ds-0" not in refused.stdout + refused.stderr


def test_the_administrator_of_one_facility_is_none_at_another(world: World) -> None:
    operator = as_user(world, "operator")
    with reserved(world) as requested:
        refused = world.s2uc("release", "--at", world.centre.s2cs, requested.uid, *operator, check=False)
        assert refused.returncode == 1
        assert "error: unknown-uid: you have no stream " in refused.stderr
        assert requested.state(CONS) == "Listening"


def test_the_same_address_from_another_authority_has_neither_the_rights_nor_the_streams_of_the_first(
    world: World,
) -> None:
    first, other = as_user(world, "namesake"), as_user(world, "namesake", "visitors")
    with reserved(world, *first, num_conn=2) as requested:
        line = refusal(world, *other)
        assert "`visitors` allows at most 10 Mbit/s per stream, but 100 was requested" in line
        assert lists(world, other) == {}
        refused = world.s2uc("release", "--at", world.lab.s2cs, requested.uid, *other, check=False)
        assert refused.returncode == 1
        assert "error: unknown-uid: you have no stream " in refused.stderr
        assert requested.state(PROD) == "Listening"
        assert list(lists(world, first)) == [requested.uid]


def test_policy_check_says_what_the_facility_would_decide(world: World) -> None:
    scistream = str(world.programs / "scistream")
    file = str(world.folder / "policy.toml")
    asked = [scistream, "policy", "check", file, "--issuer", str(world.folder / "users/ca.pem")]
    refused = world.run(*asked, "--as", "rate@lab.example", "--role", "PROD", "--rate", "101Mbit", status=1)
    said = refused.stdout.strip().removeprefix("PROD: refused (not-authorized): ")
    assert said in refusal(world, *as_user(world, "rate"), rate="101Mbit")
    world.run(*asked, "--as", "rate@lab.example", "--rate", "100Mbit")
