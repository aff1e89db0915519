"""The certificates, keys, authorities and CRLs that a configuration names, as the peers will see them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from scistream.check.findings import Finding, fail, ok, unseen, warn
from scistream.check.plan import CheckPlan
from scistream.protocol.address import Address
from scistream.shared_settings import numeric_address, trust_of
from scistream.tls.certificate_names import names_of
from scistream.tls.expiry import expiries
from scistream.tls.files import (
    CertificateError,
    CertificateFiles,
    HeldCertificate,
    LoadedCertificates,
    completed,
    load_certificates,
    printable,
    read_material,
)
from scistream.tls.purpose import check_controller, check_server
from scistream.units import spoken_seconds

_CORRECT = "correct it, then `systemctl reload`"


@dataclass(frozen=True)
class CertificateFacts:
    """The files of one certificate of a daemon, read.

    :ivar whose: "server" or "controller".
    :ivar material: their content; None if they could not be used.
    :ivar problems: why not: a sentence for each problem.
    :ivar hidden: the files that this user may not read.
    :ivar listen: the host of `listen`, by which peers may name a server; empty for a controller.
    """

    whose: str
    files: CertificateFiles
    material: LoadedCertificates | None
    problems: Sequence[str]
    hidden: Sequence[Path] = ()
    listen: str = ""


def gather(plan: CheckPlan) -> list[CertificateFacts]:
    """Read the files of all certificates that the configuration names."""
    config = plan.server or plan.gateway
    if config is None or config.insecure:
        return []
    assert plan.file is not None, "a configuration comes from a file"
    is_server = plan.server is not None
    host = Address.parse(config.listen).host
    found = [
        _read("server", trust_of(config, plan.file), lambda material: check_server(material, pinned=is_server), host)
    ]
    if plan.server is not None and plan.server.controller is not None:
        found.append(_read("controller", trust_of(plan.server.controller, plan.file), check_controller))
    return found


def _read(
    whose: str, files: CertificateFiles, check: Callable[[LoadedCertificates], None], listen: str = ""
) -> CertificateFacts:
    named = (files.certificate, files.key, *files.authorities, *files.crl)
    hidden = [path for path in named if _is_hidden(path)]
    if any(path != files.key for path in hidden):
        return CertificateFacts(whose, files, None, [], hidden, listen)
    try:
        if files.key in hidden:
            material = _without_key(files)
        else:
            material = read_material(files.certificate, files.key, files.authorities, files.crl)
        check(material)
    except CertificateError as problem:
        return CertificateFacts(whose, files, None, str(problem).splitlines(), hidden, listen)
    return CertificateFacts(whose, files, material, [], hidden, listen)


def _without_key(files: CertificateFiles) -> LoadedCertificates:
    """Read all files but the key."""
    found = read_material(None, None, files.authorities, files.crl)
    own = load_certificates(files.certificate, "certificate")
    chain, is_whole = completed(tuple(HeldCertificate(files.certificate, each) for each in own), found.authorities)
    return replace(found, chain=chain, is_whole=is_whole)


def _is_hidden(path: Path) -> bool:
    """Return True if this user may not see whether a file is there, or may not read it."""
    try:
        path.stat()
    except PermissionError:
        return True
    except OSError:
        return False
    return not os.access(path, os.R_OK)


def findings(facts: CertificateFacts, now: datetime) -> Iterator[Finding]:
    """Yield what is found about one certificate and the files around it.

    :param now: the time of this machine, with a zone.
    """
    name = f"certificates.{facts.whose}"
    if facts.hidden:
        yield unseen(name, ", ".join(map(str, facts.hidden)))
    for problem in facts.problems:
        yield fail(name, problem.rstrip("."), _CORRECT)
    if facts.material is None:
        return
    yield from _names(facts, facts.material)
    yield from _ends(facts, facts.material, now)
    yield from _revocation(facts, facts.material, now)


def _names(facts: CertificateFacts, material: LoadedCertificates) -> Iterator[Finding]:
    texts = names_of(material.chain[0].certificate)
    shown = printable(", ".join(texts))
    chain = f"{len(material.chain)} certificates" if len(material.chain) > 1 else "1 certificate"
    name = f"certificates.{facts.whose}"
    key = ", and the key fits" if material.key is not None else ""
    yield ok(name, f"{facts.files.certificate} is for {shown}; peers get {chain}{key}")
    address = numeric_address(facts.listen)
    if address is None or address.is_unspecified or address.is_loopback or f"IP:{address}" in texts:
        return
    hosts = [text for text in texts if text.startswith("DNS:")]
    if hosts:
        why = f"it does not have the address of `listen`, {address}: peers must use {printable(', '.join(hosts))}"
        yield ok(f"{name}-address", why)
    else:
        why = (
            f"{facts.files.certificate} does not have the address of `listen`, {address}, so that peers there refuse it"
        )
        remedy = f"scistream pki issue DIR server NAME --san {address}"
        yield warn(f"{name}-address", why, remedy)


def _ends(facts: CertificateFacts, material: LoadedCertificates, now: datetime) -> Iterator[Finding]:
    name = f"certificates.{facts.whose}-expiry"
    endings = list(expiries(f"the {facts.whose}", material))
    late = False
    for ending in endings:
        where = f"{ending.what} ({ending.file})"
        if ending.starts > now:
            late = True
            why = f"{where} is valid from {ending.starts:%Y-%m-%d %H:%M} UTC, but it is {now:%Y-%m-%d %H:%M} here"
            yield fail(name, why, "set the clock (timedatectl set-ntp true), or have it issued again")
        elif ending.level(now):
            late = True
            verdict = fail if ending.ends <= now else warn
            when = "has expired" if ending.ends <= now else f"expires in {_until(ending.ends, now)}"
            yield verdict(name, f"{where} {when}, on {ending.ends:%Y-%m-%d %H:%M} UTC", ending.remedy)
    if not late and endings:
        first = min(endings, key=lambda ending: ending.ends)
        yield ok(name, f"the first to expire is {first.what}, in {_until(first.ends, now)}")


def _revocation(facts: CertificateFacts, material: LoadedCertificates, now: datetime) -> Iterator[Finding]:
    name = f"certificates.{facts.whose}-revocation"
    for gap in material.gaps(now):
        what, _, remedy = gap.rpartition(": ")
        yield fail(name, what, remedy)
    if not material.crls:
        yield ok(name, "no `crl` is set, so that revoked certificates are accepted until they expire")
    for held in material.crls:
        until = held.crl.next_update_utc
        end = f", and it is valid for another {_until(until, now)}" if until is not None and until > now else ""
        yield ok(name, f"the CRL {held.file} was made {_until(now, held.crl.last_update_utc)} ago{end}")


def _until(later: datetime, earlier: datetime) -> str:
    return spoken_seconds(max(0.0, (later - earlier).total_seconds()))
