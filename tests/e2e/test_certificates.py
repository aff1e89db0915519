"""Certificates that appear, change and are revoked while daemons run: each refusal has a control that is accepted.

The servers of both facilities, and the user, check CRLs; a reload (SIGHUP) applies new files, and never disturbs
data.
"""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import tomli_w
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from duplex_traffic import Exchange
from harness import World
from test_refusals import RawLink, a_request, ada, everything
from test_survival import flowing

from scistream.pki.authority import Issued, files_of, init_authority, issue
from scistream.pki.revocation import make_crl, renew, revoke
from scistream.protocol.address import Address
from scistream.protocol.messages import PROD
from support.aged_certificates import age
from support.facilities import CONTROLLER, HOST, Daemon, Facility
from support.waiting import until

pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.fixture(scope="module")
def world(linux: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(tmp_path_factory.mktemp("world"), timing={"POLL": 2.0})
    heed_crls(world)
    with world:
        yield world


def heed_crls(world: World) -> None:
    """Make a CRL of each authority, and name it wherever the authority is named."""
    users, lab, centre = world.folder / "users", world.lab.pki, world.centre.pki
    for each in (users, lab, centre):
        make_crl(each)
    for facility in world.facilities:
        for daemon in facility.daemons:
            own = users if daemon is facility.server else facility.pki
            text = daemon.file.read_text().replace("[controller]\n", f"[controller]\n{crl_line(facility.pki)}")
            daemon.file.write_text(crl_line(own) + text)
    mine = world.folder / "config" / "scistream" / "s2uc.toml"
    mine.write_text(crl_line(lab, centre) + mine.read_text())


def crl_line(*pkis: Path) -> str:
    return f"crl = {json.dumps([str(pki / 'crl.pem') for pki in pkis])}\n"


def said_since(daemon: Daemon, start: int) -> str:
    return daemon.words()[start:]


def reload(daemon: Daemon, answer: str = " reloaded ") -> str:
    """SIGHUP, and what the daemon has logged of it."""
    start = len(daemon.words())
    os.kill(daemon.pid, signal.SIGHUP)
    until(lambda: answer in said_since(daemon, start), lambda: f"{answer!r} is not in:\n{said_since(daemon, start)}")
    return said_since(daemon, start)


def said(daemon: Daemon, words: str, start: int) -> None:
    until(lambda: words in said_since(daemon, start), lambda: f"{words!r} is not in:\n{said_since(daemon, start)}")


def options(issued: Issued) -> list[str]:
    return ["--certificate", str(issued.certificate), "--key", str(issued.key)]


def serial_shown(link: RawLink) -> int:
    der = link.sock.getpeercert(binary_form=True)
    assert der is not None
    return x509.load_der_x509_certificate(der).serial_number


def to(daemon: Daemon, facility: Facility, issued: Issued) -> RawLink:
    return RawLink(daemon.address, facility.authority, issued)


def controller_of(facility: Facility) -> Issued:
    return files_of(facility.pki, CONTROLLER)


@contextmanager
def a_fresh_certificate_afterwards(pki: Path, kind: Any, name: str, *san: str) -> Iterator[None]:
    """Issue the certificate that a test revokes again at its end, under the same file names."""
    try:
        yield
    finally:
        files = files_of(pki, name)
        files.certificate.unlink()
        files.key.unlink()
        issue(pki, kind, name, san)


def with_new_links(facility: Facility) -> None:
    """Make the links of an S2CS with the certificates that are there now; a test before may have renewed one."""
    for gateway in facility.gateways:
        reload(gateway)
    facility.server.stop()
    facility.server.start()
    facility.server.wait_until_ready()
    facility.wait_for_links()


# -- revoked


def test_a_revoked_user_is_refused_at_an_s2cs_and_existing_links_are_closed(world: World) -> None:
    users = world.folder / "users"
    eve = issue(users, "user", f"eve-{uuid4()}@lab.example")
    with to(world.lab.server, world.lab, eve) as hers, to(world.lab.server, world.lab, ada(world)) as ours:
        for link in (hers, ours):
            assert link.ask("Status", **everything())["cmd"] == "RESP"
        revoke(users, str(eve.certificate), "keyCompromise")
        with to(world.lab.server, world.lab, eve) as again:
            assert again.ask("Status", **everything())["cmd"] == "RESP", "nobody has read the new CRL yet"
        log = reload(world.lab.server)
        last = hers.hear()
        assert last is not None
        assert (last["cmd"], last["code"]) == ("ERROR", "not-authenticated")
        assert "it was revoked on" in last["msg"]
        assert hers.hear() is None
        assert ours.ask("Status", **everything(2))["cmd"] == "RESP", "the control"
        mine, theirs = (re.escape(str(Address(*link.sock.getsockname()[:2]))) for link in (hers, ours))
    # Not every such line: the S2CS may not have noticed yet that the other link of hers has ended.
    assert len(re.findall(rf"closed the link of {mine}: it was revoked on .* \(key compromise\)", log)) == 1
    assert not re.search(rf"closed the link of {theirs}", log)

    trail = world.lab.store.with_suffix(".audit.jsonl")
    before = len(trail.read_text())
    with to(world.lab.server, world.lab, eve) as link:
        assert link.hear() is None
    until(lambda: "it was revoked on" in trail.read_text()[before:], lambda: trail.read_text()[before:])
    refused = world.s2uc(
        "request", "--prod", world.lab.s2cs, "--cons", world.centre.s2cs, *options(eve), check=False
    )  # fmt: skip
    assert refused.returncode == 1
    assert "revoked" in refused.stderr

    request = a_request()
    with to(world.lab.server, world.lab, ada(world)) as link:
        assert link.ask("REQ", **request)["state"] == "Listening"
        assert link.ask("REL", uid=request["uid"], role=PROD, seq=2)["state"] == "Released"


def test_a_revoked_controller_is_refused_at_its_gateway_and_its_successor_obeyed_with_no_byte_disturbed(
    world: World,
) -> None:
    (gateway,), server = world.lab.gateways, world.lab.server
    with_new_links(world.lab)
    old = controller_of(world.lab)
    with flowing(world) as asked:
        with to(gateway, world.lab, old) as link:
            assert link.ask("Status", **everything())["cmd"] == "RESP"
        kept = Issued(world.folder / "old.pem", world.folder / "old.key")
        with a_fresh_certificate_afterwards(world.lab.pki, "controller", CONTROLLER):
            kept.certificate.write_bytes(old.certificate.read_bytes())
            kept.key.write_bytes(old.key.read_bytes())
            kept.key.chmod(0o600)
            revoke(world.lab.pki, CONTROLLER)
            start = len(server.words())
            assert "closed the link of" in reload(gateway)
            said(server, "our certificate is revoked", start)
            with to(gateway, world.lab, kept) as link:
                assert link.hear() is None
            asked.exchange.wait_for_more()
        start = len(server.words())
        reload(server)
        said(server, "is connected", start)
        with to(gateway, world.lab, kept) as link:
            assert link.hear() is None
        with to(gateway, world.lab, controller_of(world.lab)) as link:
            assert link.ask("Status", **everything())["cmd"] == "RESP"
        asked.exchange.wait_for_more()
        assert asked.exchange.finish() == "whole"


def test_a_revoked_gateway_gets_no_stream_from_its_s2cs_until_it_has_a_new_certificate(world: World) -> None:
    (gateway,), server = world.lab.gateways, world.lab.server
    name = f"{gateway.name}-server"
    with_new_links(world.lab)
    with flowing(world) as asked:
        with a_fresh_certificate_afterwards(world.lab.pki, "server", name, HOST):
            revoke(world.lab.pki, name)
            start = len(server.words())
            assert "closed the link of" in reload(server)
            said(server, "it was revoked on", start)
            with to(server, world.lab, ada(world)) as link:
                answer = link.ask("REQ", **a_request())
                assert answer["cmd"] == "ERROR", answer
            asked.exchange.wait_for_more()
        start = len(server.words())
        reload(gateway)
        said(server, "is connected", start)
        request = a_request()
        with to(server, world.lab, ada(world)) as link:
            assert link.ask("REQ", **request)["state"] == "Listening"
            assert link.ask("REL", uid=request["uid"], role=PROD, seq=2)["state"] == "Released"
        assert asked.exchange.finish() == "whole"


def test_a_server_whose_certificate_is_revoked_is_refused_by_the_user(world: World) -> None:
    name = f"{world.centre.server.name}"
    between = ["--prod", world.lab.s2cs, "--cons", world.centre.s2cs, "--rate", "100Mbit"]
    with a_fresh_certificate_afterwards(world.centre.pki, "server", name, HOST):
        revoke(world.centre.pki, name)
        refused = world.s2uc("request", *between, check=False)
        assert refused.returncode == 1
        assert "consumer side" in refused.stderr
        assert "it was revoked on" in refused.stderr
    reload(world.centre.server)
    with world.request():
        pass


def test_under_a_crl_that_has_expired_nobody_gets_in_until_there_is_a_fresh_one(world: World) -> None:
    users = world.folder / "users"
    with to(world.lab.server, world.lab, ada(world)) as link:
        assert link.ask("Status", **everything())["cmd"] == "RESP"
        expired_crl(users)
        log = reload(world.lab.server)
        assert f"the CRL {users}/crl.pem" in log
        assert "has expired" in log
        assert "scistream pki crl" in log
        with to(world.lab.server, world.lab, ada(world)) as refused:
            assert refused.hear() is None
        assert link.ask("Status", **everything(2))["cmd"] == "RESP", "a link that is there goes on"
    make_crl(users)
    reload(world.lab.server)
    with to(world.lab.server, world.lab, ada(world)) as link:
        assert link.ask("Status", **everything())["cmd"] == "RESP"


def expired_crl(pki: Path) -> None:
    """Put a CRL of yesterday in place."""
    now = x509.load_pem_x509_crl((pki / "crl.pem").read_bytes()).last_update_utc
    key = serialization.load_pem_private_key((pki / "ca.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    authority = x509.load_pem_x509_certificate((pki / "ca.pem").read_bytes())
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.subject)
        .last_update(now - timedelta(days=2))
        .next_update(now - timedelta(days=1))
    )
    (pki / "crl.pem").write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))


# -- reload


def test_new_certificates_and_crls_take_effect_at_a_reload_and_disturb_no_byte(world: World) -> None:
    with flowing(world, 2) as asked:
        for _ in range(2):
            for facility in world.facilities:
                make_crl(facility.pki)
                for daemon in facility.daemons:
                    name = daemon.name if daemon is facility.server else f"{daemon.name}-server"
                    shows = ada(world) if daemon is facility.server else controller_of(facility)
                    with to(daemon, facility, shows) as before:
                        files, _ = renew(facility.pki, name, 200)
                        with to(daemon, facility, shows) as unread:
                            assert serial_shown(unread) == serial_shown(before)
                        reload(daemon)
                        with to(daemon, facility, shows) as after:
                            fresh = x509.load_pem_x509_certificate(files.certificate.read_bytes()).serial_number
                            assert serial_shown(after) == fresh != serial_shown(before)
                        assert before.ask("Status", **everything())["cmd"] == "RESP", "an old link goes on"
                    asked.exchange.wait_for_more()
        states = json.loads(world.s2uc("status", asked.uid, "--json").stdout)["streams"][asked.uid]
        assert {side["state"] for side in states.values()} == {"Streaming"}
        assert asked.exchange.finish() == "whole"


def test_a_broken_new_file_keeps_the_old_ones_and_is_named(world: World) -> None:
    (gateway,), server = world.lab.gateways, world.lab.server
    broken = [
        (server, world.lab.pki / f"{server.name}.pem", "contains no certificate"),
        (server, world.lab.pki / f"{CONTROLLER}.key", "contains no private key"),
        (server, world.folder / "users" / "crl.pem", "contains no CRL"),
        (gateway, world.lab.pki / f"{gateway.name}-server.key", "contains no private key"),
        (gateway, world.lab.pki / "crl.pem", "contains no CRL"),
    ]
    for daemon, file, words in broken:
        shows = ada(world) if daemon is server else controller_of(world.lab)
        good = file.read_bytes()
        with to(daemon, world.lab, shows if "controller" not in file.name else ada(world)) as link:
            before = serial_shown(link)
        file.write_bytes(b"half a file")
        log = reload(daemon, "NOT reloaded")
        assert str(file) in log
        assert words in log
        assert " reloaded " not in log
        file.write_bytes(good)
        with to(daemon, world.lab, shows) as link:
            assert serial_shown(link) == before
            assert link.ask("Status", **everything())["cmd"] == "RESP"
        reload(daemon)


def test_an_authority_beside_the_old_one_lets_both_in_and_the_old_one_goes_when_it_is_taken_out(
    world: World, tmp_path: Path
) -> None:
    file, crl = world.folder / "users" / "ca.pem", world.folder / "users" / "crl.pem"
    only_old, old_crl = file.read_bytes(), crl.read_bytes()
    init_authority(tmp_path / "new", "Users of both")
    make_crl(tmp_path / "new")
    newcomer = issue(tmp_path / "new", "user", "ada")
    with to(world.lab.server, world.lab, newcomer) as link:
        assert link.hear() is None
    try:
        file.write_bytes(only_old + (tmp_path / "new" / "ca.pem").read_bytes())
        crl.write_bytes(old_crl + (tmp_path / "new" / "crl.pem").read_bytes())
        reload(world.lab.server)
        with to(world.lab.server, world.lab, newcomer) as theirs, to(world.lab.server, world.lab, ada(world)) as ours:
            for link in (theirs, ours):
                assert link.ask("Status", **everything())["cmd"] == "RESP"
            file.write_bytes((tmp_path / "new" / "ca.pem").read_bytes())
            reload(world.lab.server)
            last = ours.hear()
            assert last is not None
            assert "not in `authorities`" in last["msg"]
            assert theirs.ask("Status", **everything(2))["cmd"] == "RESP"
    finally:
        file.write_bytes(only_old)
        crl.write_bytes(old_crl)
        reload(world.lab.server)
    with to(world.lab.server, world.lab, ada(world)) as link:
        assert link.ask("Status", **everything())["cmd"] == "RESP"


# -- the end of a certificate


@pytest.mark.parametrize("party", ["user", "controller"])
def test_a_link_ends_when_the_certificate_does_that_it_was_made_with(world: World, party: str) -> None:
    daemon, pki = (
        (world.lab.server, world.folder / "users") if party == "user" else (world.lab.gateways[0], world.lab.pki)
    )
    short, long = (issue(pki, "user", f"{name}-{uuid4()}@lab.example") for name in ("short", "long"))
    if party == "controller":
        long = controller_of(world.lab)
        short.certificate.write_bytes(long.certificate.read_bytes())
        short.key.write_bytes(long.key.read_bytes())
    start = len(daemon.words())
    end = age(short.certificate, life=timedelta(hours=1), left=timedelta(seconds=5)).not_valid_after_utc
    with to(daemon, world.lab, short) as hers, to(daemon, world.lab, long) as ours:
        for link in (hers, ours):
            assert link.ask("Status", **everything())["cmd"] == "RESP"
        last = hers.hear()
        assert datetime.now(UTC) >= end
        assert last is not None
        assert (last["cmd"], last["code"]) == ("ERROR", "not-authenticated")
        assert f"valid until {end:%Y-%m-%d %H:%M} UTC, and it is " in last["msg"]
        assert hers.hear() is None
        assert ours.ask("Status", **everything(2))["cmd"] == "RESP", "the control"
    said(daemon, "a link whose certificate has expired", start)

    def is_refused_in_the_handshake() -> bool:
        """Return True if the handshake fails.

        For OpenSSL a certificate lasts to the end of its last second, by a clock that is milliseconds late: until then
        the link is made, told why it ends, and closed.
        """
        with to(daemon, world.lab, short) as again:
            answer = again.hear()
            if answer is None:
                return True
            assert (answer["cmd"], answer["code"]) == ("ERROR", "not-authenticated")
            assert again.hear() is None
        return False

    until(is_refused_in_the_handshake, lambda: "a certificate that has ended is still taken in the handshake")
    life = f"(valid from {end - timedelta(hours=1):%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC; it is "
    # Where others were refused from this address lately, the log tells of the last one within a minute.
    until(lambda: life in said_since(daemon, start), lambda: said_since(daemon, start), 75.0)


def test_an_s2cs_and_a_user_end_their_links_to_a_server_whose_certificate_ends(world: World) -> None:
    (gateway,), server = world.lab.gateways, world.lab.server
    name = f"{gateway.name}-server"
    with flowing(world) as asked:
        start, began = len(server.words()), len(gateway.words())
        age(files_of(world.lab.pki, name).certificate, life=timedelta(hours=1), left=timedelta(seconds=8))
        reload(gateway)
        server.stop()  # so that its link is made with that certificate
        server.start()
        server.wait_until_ready()
        said(server, "a link whose certificate has expired", start)
        said(server, "it has expired, or our clock is ahead (valid from", start)
        said(gateway, "EXPIRY: the server certificate of", began)
        said(gateway, "has expired, on", began)
        renew(world.lab.pki, name, 397)
        reload(gateway)
        world.lab.wait_for_links()
        asked.exchange.wait_for_more()


# -- warnings


def test_what_expires_soon_is_in_the_log_and_in_what_the_user_is_told(world: World, tmp_path: Path) -> None:
    (gateway,), server = world.lab.gateways, world.lab.server
    soon = issue(world.folder / "users", "user", f"soon-{uuid4()}")
    age(soon.certificate, life=timedelta(days=90), left=timedelta(days=6, hours=1))
    config = tmp_path / "s2uc.toml"
    authorities = [str(each.authority) for each in world.facilities]
    config.write_text(
        tomli_w.dumps({"certificate": str(soon.certificate), "key": str(soon.key), "authorities": authorities})
    )
    assert "expires in 6 days" in world.s2uc("list", "--config", str(config)).stderr
    assert world.s2uc("list").stderr == ""

    with world.request(1, "100Mbit", "--config", str(config)) as requested:
        known = ["status", requested.uid, "--config", str(config)]
        assert list(json.loads(world.s2uc(*known, "--json").stdout)["warnings"]) == [world.lab.s2cs, world.centre.s2cs]
        for name, days in ((server.name, 3), (f"{gateway.name}-server", 20)):
            renew(world.lab.pki, name, 397)
            left = timedelta(days=days, hours=1)
            age(files_of(world.lab.pki, name).certificate, life=timedelta(days=397), left=left)
        log = reload(server)
        assert "EXPIRY: the server certificate of" in log
        assert "expires in 3 days" in log
        assert "scistream pki renew" in log
        with_new_links(world.lab)
        told = json.loads(world.s2uc(*known, "--json").stdout)["warnings"]
        assert set(told) == {world.lab.s2cs, world.centre.s2cs}
        text = "\n".join(told[world.lab.s2cs])
        for part in ("server certificate", "expires in 3 days", f"gateway {gateway.name} expires in 20 days"):
            assert part in text
        assert "your own certificate expires in 6 days" in text
        assert len(told[world.centre.s2cs]) == 1
        assert f"warning: {world.lab.s2cs}: the server certificate" in world.s2uc(*known).stderr
        renew(world.lab.pki, server.name, 397)
        renew(world.lab.pki, f"{gateway.name}-server", 397)
        for daemon in (server, gateway):
            reload(daemon)
        world.s2uc("release", requested.uid, "--config", str(config))
        requested._released = True


# -- enrolment, by the commands alone


def scistream(world: World, *words: str) -> str:
    return world.run(str(world.programs / "scistream"), "pki", *words).stdout


def test_a_user_enrols_by_request_sign_and_install_and_streams(world: World, tmp_path: Path) -> None:
    users, name = world.folder / "users", f"grace-{uuid4()}@uni.example"
    home = tmp_path / "home"
    scistream(world, "request", "user", name, "--out", str(home))
    scistream(world, "sign", str(users), str(home / f"{name}.csr"), "--kind", "user", "--name", name)
    (home / f"{name}.pem").write_bytes((users / f"{name}.pem").read_bytes())  # it has come by mail
    out = scistream(
        world, "install", str(home / f"{name}.pem"), "--key", str(home / f"{name}.key"), str(tmp_path / "config")
    )
    config = tmp_path / "s2uc.toml"
    lines = [line.strip() for line in out.splitlines() if re.match(r"  (certificate|key) = ", line)]
    authorities = json.dumps([str(each.authority) for each in world.facilities])
    config.write_text("\n".join([*lines, f"authorities = {authorities}"]))
    assert not list(users.glob(f"{name}*.key")), "the key has never been there"

    with Exchange(1) as exchange:
        program = world.start_s2uc(
            "request", "--json", "--prod", world.lab.s2cs, "--cons", world.centre.s2cs, "--config", str(config)
        )
        first = json.loads(program.line())
        consumer = world.cons(first["join"]["CONS"])
        world.prod(first["join"]["PROD"], exchange.listen)
        program.end()
        assert exchange.connect(json.loads(consumer.end().stdout)["listeners"])
        exchange.wait_for_more()
        assert exchange.finish() == "whole"
        with to(world.lab.server, world.lab, ada(world)) as link:
            answer = link.ask("REL", uid=first["uid"], role=PROD, seq=1)
            assert answer["code"] == "unknown-uid", "it is hers"
        world.s2uc("release", first["uid"], "--config", str(config))


def test_a_gateway_enrols_by_request_sign_and_install_and_is_reached(world: World, tmp_path: Path) -> None:
    (gateway,), server = world.centre.gateways, world.centre.server
    pki, machine = world.centre.pki, tmp_path / "gateway"
    name = f"{gateway.name}-server"
    old = Issued(pki / "was.pem", pki / "was.key")
    files_of(pki, name).certificate.rename(old.certificate)
    files_of(pki, name).key.rename(old.key)
    try:
        scistream(world, "request", "server", name, "--san", HOST, "--out", str(machine))
        csr = str(machine / f"{name}.csr")
        scistream(world, "sign", str(pki), csr, "--kind", "server", "--name", name, "--san", HOST)
        scistream(world, "install", str(pki / f"{name}.pem"), "--key", str(machine / f"{name}.key"), str(machine))
    finally:
        signed = machine / f"{name}.pem"
        fresh = (signed.read_bytes(), (machine / f"{name}.key").read_bytes()) if signed.exists() else None
        for path, kept in zip(vars(files_of(pki, name)).values(), vars(old).values(), strict=True):
            path.unlink(missing_ok=True)
            kept.rename(path)
    assert fresh is not None
    files = files_of(pki, name)
    files.certificate.write_bytes(fresh[0])
    files.key.write_bytes(fresh[1])
    reload(gateway)
    start = len(server.words())
    server.stop()
    server.start()
    server.wait_until_ready()
    world.centre.wait_for_links()
    said(server, "is connected", start)
    with to(gateway, world.centre, controller_of(world.centre)) as link:
        assert serial_shown(link) == x509.load_pem_x509_certificate(fresh[0]).serial_number
    with world.request():
        pass
