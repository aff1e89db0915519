"""Warnings before a certificate, an authority or a CRL expires: 30, 7 and 1 days ahead.

An `ExpiryWatch` belongs to a server: it looks at its start, when its files were read again, and once a day, and logs
each threshold once. What it says in a log names the file; what it says to others (in status) does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from scistream.security.keyring import Keyring, verified_path
from scistream.security.material import Material, Trust, name_of, printable, read_material, utc_now

THRESHOLDS = (30, 7, 1)
"""Days."""

LOOK_SECONDS = 86400.0


@dataclass(frozen=True)
class Ending:
    """Something that will expire.

    :param what: as it is called: "the server certificate of s2cs.example".
    :param remedy: what to do, for who can do it.
    """

    what: str
    ends: datetime
    remedy: str
    file: Path | None = None

    def level(self, now: datetime) -> int | None:
        """The threshold, in days, that has been passed last; 0 when it has expired; None as long as it is far off."""
        if self.ends <= now:
            return 0
        return min((days for days in THRESHOLDS if self.ends - now <= timedelta(days=days)), default=None)

    def warning(self, now: datetime, *, with_file: bool = False) -> str | None:
        """The sentence, if it is time for one."""
        if self.level(now) is None:
            return None
        where = f" ({self.file})" if with_file and self.file is not None else ""
        when = "has expired" if self.ends <= now else f"expires in {_span(self.ends - now)}"
        return f"{self.what}{where} {when}, on {self.ends:%Y-%m-%d %H:%M} UTC: {self.remedy}"


class ExpiryWatch:
    """Looks after what a server presents and believes.

    :param reactor: for the daily look.
    :param keyrings: by what their certificates are called: "server", "controller".
    :param wall: seconds since the epoch.
    :param log: of the party.
    """

    def __init__(self, reactor: Any, keyrings: Mapping[str, Keyring], wall: Callable[[], float], log: Logger) -> None:
        self._keyrings = keyrings
        self._wall = wall
        self._log = log
        self._said: dict[Ending, int] = {}
        self._daily = LoopingCall(self.look)
        self._daily.clock = reactor

    def start(self) -> None:
        """Look now, and from now on once a day."""
        self._daily.start(LOOK_SECONDS)

    def stop(self) -> None:
        """Look no more."""
        if self._daily.running:
            self._daily.stop()

    def look(self) -> None:
        """Log what has come to a threshold since it was last told, and, each time, what the CRLs lack."""
        now = self._now()
        for ending in self._endings():
            level = ending.level(now)
            if level is not None and level < self._said.get(ending, THRESHOLDS[0] + 1):
                self._said[ending] = level
                self._log.warn("EXPIRY: {warning}", warning=ending.warning(now, with_file=True))
        for keyring in self._keyrings.values():
            for gap in keyring.material.gaps(now):
                self._log.error("CRL: {gap}", gap=gap)

    def warnings(self) -> list[str]:
        """All that is within the thresholds, for people elsewhere."""
        now = self._now()
        return [warning for ending in self._endings() if (warning := ending.warning(now)) is not None]

    def of_peer(self, link: Any, what: str, remedy: str) -> list[str]:
        """The same of the certificate by which the peer of a link has proved who it is."""
        now = self._now()
        path = verified_path(link)
        warning = Ending(what, path[0].not_valid_after_utc, remedy).warning(now) if path else None
        return [] if warning is None else [warning]

    def _endings(self) -> Iterator[Ending]:
        seen = set()
        for name, keyring in self._keyrings.items():
            for ending in endings(f"the {name}", keyring.material):
                if (ending.what, ending.ends) not in seen:
                    seen.add((ending.what, ending.ends))
                    yield ending

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._wall(), UTC)


def expiring_soon(whose: str, trust: Trust) -> list[str]:
    """The warnings of today about the files of somebody who has no server, with the names of the files.

    :param whose: "your".
    :raises CertificateProblem: if they are not usable.
    """
    now = utc_now()
    material = read_material(trust.certificate, trust.key, trust.authorities, trust.crl)
    found = [ending.warning(now, with_file=True) for ending in endings(whose, material)]
    return [warning for warning in found if warning is not None] + material.gaps(now)


def endings(whose: str, material: Material) -> Iterator[Ending]:
    """What of some files will expire.

    :param whose: what their certificate is called by: "the server".
    """
    believed = {held.certificate for held in material.authorities}
    for number, held in enumerate(material.chain):
        if number > 0 and held.certificate in believed:
            continue  # it has a line of its own
        what = f"{whose} certificate" if number == 0 else f"in the chain of {whose} certificate, that"
        remedy = "renew it (scistream pki renew), put it in place and reload"
        yield Ending(f"{what} of {_whose(held.certificate)}", held.certificate.not_valid_after_utc, remedy, held.file)
    for held in material.authorities:
        remedy = "put a new authority beside it in time (see docs/certificates.rst), since all its certificates end too"
        subject = _whose(held.certificate)
        yield Ending(f"the authority {subject}", held.certificate.not_valid_after_utc, remedy, held.file)
    for list_ in material.crls:
        if list_.crl.next_update_utc is not None:
            remedy = "make a fresh one (scistream pki crl), put it in place and reload"
            yield Ending(f"the CRL of {name_of(list_.crl.issuer)}", list_.crl.next_update_utc, remedy, list_.file)


def _whose(certificate: x509.Certificate) -> str:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return printable(", ".join(str(name.value) for name in names))
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return name_of(certificate.subject)


def _span(left: timedelta) -> str:
    hours = left / timedelta(hours=1)
    if hours >= 48:
        return f"{hours / 24:.0f} days"
    return f"{hours:.0f} hours" if hours >= 2 else f"{hours * 60:.0f} minutes"
