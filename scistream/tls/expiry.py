"""Warn before a certificate, an authority or a CRL expires: 30, 7 and 1 days ahead, or less if its life is short.

The `ExpiryWatch` of a server checks when it starts, after a reload, at each threshold and at least once a day, and logs
each threshold once. Log lines name the file; warnings for other parties (in Status) do not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography import x509

from scistream import timing
from scistream.tls.files import CertificateFiles, LoadedCertificates, name_of, printable, read_material, utc_now
from scistream.tls.reloadable import ReloadableCredentials, verified_path
from scistream.units import spoken_seconds

if TYPE_CHECKING:  # `s2uc list` warns of certificates too, and is to be quick
    from twisted.internet.interfaces import IDelayedCall
    from twisted.logger import Logger

WARN_AHEAD = timedelta(days=30)
WARN_SHARE = 3
"""The first warning comes `WARN_AHEAD` before the end, or when a third of the life is left if that is later."""

STEPS = (1.0, 7 / 30, 1 / 30)
"""When warnings come, as fractions of the time from the first one to the end: at 30, 7 and 1 of 30 days."""


@dataclass(frozen=True)
class Expiry:
    """Something that expires.

    :param what: its name in warnings, such as "the server certificate of s2cs.example".
    :param remedy: what to do about it.
    """

    what: str
    starts: datetime
    ends: datetime
    remedy: str
    file: Path | None = None

    @property
    def thresholds(self) -> tuple[datetime, ...]:
        """The times of the warnings, the last of which is the end itself."""
        ahead = min(WARN_AHEAD, (self.ends - self.starts) / WARN_SHARE)
        return (*(self.ends - ahead * share for share in STEPS), self.ends)

    def level(self, now: datetime) -> int:
        """Return how many thresholds have been passed."""
        return sum(threshold <= now for threshold in self.thresholds)

    def warning(self, now: datetime, *, with_file: bool = False) -> str | None:
        """Return the warning, or None if no threshold has been passed."""
        if not self.level(now):
            return None
        where = f" ({self.file})" if with_file and self.file is not None else ""
        when = "has expired" if self.ends <= now else f"expires in {spoken_seconds((self.ends - now).total_seconds())}"
        return f"{self.what}{where} {when}, on {self.ends:%Y-%m-%d %H:%M} UTC: {self.remedy}"


class ExpiryWatch:
    """Checks the certificates, authorities and CRLs of a server.

    :param reactor: schedules the next check.
    :param all_credentials: by the name of their certificates in logs: "server", "controller".
    :param wall: returns the seconds since the epoch.
    :param log: the logger of the party.
    """

    def __init__(
        self, reactor: Any, all_credentials: Mapping[str, ReloadableCredentials], wall: Callable[[], float], log: Logger
    ) -> None:
        self._all_credentials = all_credentials
        self._wall = wall
        self._log = log
        self._levels_logged: dict[Expiry, int] = {}
        self._reactor = reactor
        self._next: IDelayedCall | None = None
        self._running = False

    def start(self) -> None:
        """Check now, and again whenever a threshold may have been passed."""
        self._running = True
        self.look()

    def stop(self) -> None:
        """Stop checking."""
        self._running = False
        if self._next is not None and self._next.active():
            self._next.cancel()

    def _look_again(self, now: datetime) -> None:
        """Schedule a check for the next threshold, but at least once a day, since the wall clock may be set."""
        if self._next is not None and self._next.active():
            self._next.cancel()
        ahead = [time for ending in self._endings() for time in ending.thresholds if time > now]
        seconds = (min(ahead) - now).total_seconds() if ahead else timing.EXPIRY_CHECK
        self._next = self._reactor.callLater(
            min(timing.EXPIRY_CHECK, max(timing.SOONEST_EXPIRY_CHECK, seconds)), self.look
        )

    def look(self) -> None:
        """Log each expiry that has passed a new threshold, and every gap in the CRLs."""
        now = self._now()
        if self._running:
            self._look_again(now)
        for ending in self._endings():
            level = ending.level(now)
            if level > self._levels_logged.get(ending, 0):
                self._levels_logged[ending] = level
                self._log.warn("EXPIRY: {warning}", warning=ending.warning(now, with_file=True))
        for credentials in self._all_credentials.values():
            for gap in credentials.material.gaps(now):
                self._log.error("CRL: {gap}", gap=gap)

    def warnings(self) -> list[str]:
        """Return all current warnings, without file names, for other parties."""
        now = self._now()
        return [warning for ending in self._endings() if (warning := ending.warning(now)) is not None]

    def of_peer(self, link: Any, what: str, remedy: str) -> list[str]:
        """Return the warning about the certificate of a link's peer, as a list of at most one.

        :param what: the name of the certificate in the warning.
        """
        now = self._now()
        path = verified_path(link)
        warning = Expiry(what, *_life(path[0]), remedy).warning(now) if path else None
        return [] if warning is None else [warning]

    @property
    def first_end(self) -> datetime | None:
        """When the first certificate, authority or CRL of the server expires; None if it has none."""
        return min((ending.ends for ending in self._endings()), default=None)

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
    """Return the current warnings about a user's files, with the names of the files.

    :param whose: how to name the certificate in the warnings: "your".
    :raises CertificateError: if the files cannot be used.
    """
    now = utc_now()
    material = read_material(trust.certificate, trust.key, trust.authorities, trust.crl)
    found = [ending.warning(now, with_file=True) for ending in expiries(whose, material)]
    return [warning for warning in found if warning is not None] + material.gaps(now)


def expiries(whose: str, material: LoadedCertificates) -> Iterator[Expiry]:
    """Yield everything in these files that expires.

    :param whose: how to name the certificate in warnings: "the server".
    """
    believed = {held.certificate for held in material.authorities}
    for number, held in enumerate(material.chain):
        if number > 0 and held.certificate in believed:
            continue  # reported below, as an authority
        what = f"{whose} certificate" if number == 0 else f"in the chain of {whose} certificate, the one"
        remedy = "renew it (scistream pki renew), put it in place and reload"
        yield Expiry(f"{what} of {_whose(held.certificate)}", *_life(held.certificate), remedy, held.file)
    for held in material.authorities:
        remedy = (
            "add a new authority before that (see docs/certificates.rst), since all its certificates expire with it"
        )
        subject = _whose(held.certificate)
        yield Expiry(f"the authority {subject}", *_life(held.certificate), remedy, held.file)
    for list_ in material.crls:
        if list_.crl.next_update_utc is not None:
            remedy = "make a new one (scistream pki crl), put it in place and reload"
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
