"""Warnings before a certificate, an authority or a CRL expires: 30, 7 and 1 days ahead, or less if its life is short.

An `ExpiryWatch` belongs to a server: it looks at its start, when its files were read again, at each threshold and at
least once a day, and logs each threshold once. What it says in a log names the file; what it says to others (in
status) does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from scistream import timing
from scistream.tls.files import CertificateFiles, LoadedCertificates, name_of, printable, read_material, utc_now
from scistream.tls.reloadable import ReloadableCredentials, verified_path
from scistream.units import spoken_seconds

WARN_AHEAD = timedelta(days=30)
WARN_SHARE = 3
"""The first warning comes `WARN_AHEAD` before the end, or in the last third of what lives no longer than that asks."""

STEPS = (1.0, 7 / 30, 1 / 30)
"""When warnings come, as shares of the time from the first one to the end: 30, 7 and 1 of 30 days."""


@dataclass(frozen=True)
class Expiry:
    """Something that will expire.

    :param what: as it is called: "the server certificate of s2cs.example".
    :param remedy: what to do, for who can do it.
    """

    what: str
    starts: datetime
    ends: datetime
    remedy: str
    file: Path | None = None

    @property
    def thresholds(self) -> tuple[datetime, ...]:
        """When warnings come, the last of them at the end itself."""
        ahead = min(WARN_AHEAD, (self.ends - self.starts) / WARN_SHARE)
        return (*(self.ends - ahead * share for share in STEPS), self.ends)

    def level(self, now: datetime) -> int:
        """How many thresholds have been passed; 0 as long as the end is far off."""
        return sum(threshold <= now for threshold in self.thresholds)

    def warning(self, now: datetime, *, with_file: bool = False) -> str | None:
        """The sentence, if it is time for one."""
        if not self.level(now):
            return None
        where = f" ({self.file})" if with_file and self.file is not None else ""
        when = "has expired" if self.ends <= now else f"expires in {spoken_seconds((self.ends - now).total_seconds())}"
        return f"{self.what}{where} {when}, on {self.ends:%Y-%m-%d %H:%M} UTC: {self.remedy}"


class ExpiryWatch:
    """Looks after what a server presents and believes.

    :param reactor: for the next look.
    :param all_credentials: by the name of their certificates in logs: "server", "controller".
    :param wall: seconds since the epoch.
    :param log: of the party.
    """

    def __init__(
        self, reactor: Any, all_credentials: Mapping[str, ReloadableCredentials], wall: Callable[[], float], log: Logger
    ) -> None:
        self._all_credentials = all_credentials
        self._wall = wall
        self._log = log
        self._said: dict[Expiry, int] = {}
        self._reactor = reactor
        self._next: IDelayedCall | None = None
        self._running = False

    def start(self) -> None:
        """Look now, and from now on whenever there may be something to tell."""
        self._running = True
        self.look()

    def stop(self) -> None:
        """Look no more."""
        self._running = False
        if self._next is not None and self._next.active():
            self._next.cancel()

    def _look_again(self, now: datetime) -> None:
        """At the next threshold, and at least once a day: the wall clock may be set meanwhile."""
        if self._next is not None and self._next.active():
            self._next.cancel()
        ahead = [time for ending in self._endings() for time in ending.thresholds if time > now]
        seconds = (min(ahead) - now).total_seconds() if ahead else timing.EXPIRY_LOOK
        self._next = self._reactor.callLater(
            min(timing.EXPIRY_LOOK, max(timing.SOONEST_EXPIRY_LOOK, seconds)), self.look
        )

    def look(self) -> None:
        """Log what has come to a threshold since it was last told, and, each time, what the CRLs lack."""
        now = self._now()
        if self._running:
            self._look_again(now)
        for ending in self._endings():
            level = ending.level(now)
            if level > self._said.get(ending, 0):
                self._said[ending] = level
                self._log.warn("EXPIRY: {warning}", warning=ending.warning(now, with_file=True))
        for credentials in self._all_credentials.values():
            for gap in credentials.material.gaps(now):
                self._log.error("CRL: {gap}", gap=gap)

    def warnings(self) -> list[str]:
        """All that is within the thresholds, for people elsewhere."""
        now = self._now()
        return [warning for ending in self._endings() if (warning := ending.warning(now)) is not None]

    def of_peer(self, link: Any, what: str, remedy: str) -> list[str]:
        """The same of the certificate by which the peer of a link has proved who it is."""
        now = self._now()
        path = verified_path(link)
        warning = Expiry(what, *_life(path[0]), remedy).warning(now) if path else None
        return [] if warning is None else [warning]

    def _endings(self) -> Iterator[Expiry]:
        seen = set()
        for name, credentials in self._all_credentials.items():
            for ending in expiries(f"the {name}", credentials.material):
                if (ending.what, ending.ends) not in seen:
                    seen.add((ending.what, ending.ends))
                    yield ending

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._wall(), UTC)


def expiring_soon(whose: str, trust: CertificateFiles) -> list[str]:
    """The warnings of today about the files of somebody who has no server, with the names of the files.

    :param whose: "your".
    :raises CertificateError: if they are not usable.
    """
    now = utc_now()
    material = read_material(trust.certificate, trust.key, trust.authorities, trust.crl)
    found = [ending.warning(now, with_file=True) for ending in expiries(whose, material)]
    return [warning for warning in found if warning is not None] + material.gaps(now)


def expiries(whose: str, material: LoadedCertificates) -> Iterator[Expiry]:
    """What of some files will expire.

    :param whose: what their certificate is called by: "the server".
    """
    believed = {held.certificate for held in material.authorities}
    for number, held in enumerate(material.chain):
        if number > 0 and held.certificate in believed:
            continue  # it has a line of its own
        what = f"{whose} certificate" if number == 0 else f"in the chain of {whose} certificate, that"
        remedy = "renew it (scistream pki renew), put it in place and reload"
        yield Expiry(f"{what} of {_whose(held.certificate)}", *_life(held.certificate), remedy, held.file)
    for held in material.authorities:
        remedy = "put a new authority beside it in time (see docs/certificates.rst), since all its certificates end too"
        subject = _whose(held.certificate)
        yield Expiry(f"the authority {subject}", *_life(held.certificate), remedy, held.file)
    for list_ in material.crls:
        if list_.crl.next_update_utc is not None:
            remedy = "make a fresh one (scistream pki crl), put it in place and reload"
            life = list_.crl.last_update_utc, list_.crl.next_update_utc
            yield Expiry(f"the CRL of {name_of(list_.crl.issuer)}", *life, remedy, list_.file)


def _life(certificate: x509.Certificate) -> tuple[datetime, datetime]:
    return certificate.not_valid_before_utc, certificate.not_valid_after_utc


def _whose(certificate: x509.Certificate) -> str:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return printable(", ".join(str(name.value) for name in names))
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return name_of(certificate.subject)
