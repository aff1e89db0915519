"""Warnings before something expires: one log line at each threshold, and warnings for other parties."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.logger import Logger, formatEvent, globalLogPublisher

from scistream.pki.authority import init_authority, issue
from scistream.pki.revocation import make_crl, renew
from scistream.tls.expiry import WARN_AHEAD, Expiry, ExpiryWatch, expiring_soon
from scistream.tls.files import CertificateFiles
from scistream.tls.reloadable import server_credentials
from support.aged_certificates import age

DAY = 86400.0


@pytest.fixture
def lines() -> Iterator[list[str]]:
    said: list[str] = []

    def note(event: dict[str, Any]) -> None:
        if event.get("log_namespace") == "expiry-test":
            said.append(formatEvent(event))

    globalLogPublisher.addObserver(note)
    yield said
    globalLogPublisher.removeObserver(note)


class Watched:
    """A server with a certificate valid for some days, and a clock that starts now."""

    def __init__(
        self, directory: Path, *, days: int = 40, crl_days: int | None = None, authority_days: int = 3650
    ) -> None:
        self.directory = directory
        ca = init_authority(directory, "Example", authority_days).certificate
        self.server = issue(directory, "server", "s2cs.example", days=days)
        crls: tuple[Path, ...] = ()
        if crl_days is not None:
            make_crl(directory, crl_days)
            crls = (directory / "crl.pem",)
        self.trust = CertificateFiles(self.server.certificate, self.server.key, (ca,), crls)
        self.credentials = server_credentials(self.trust, "optional")
        self.clock = Clock()
        self._start = datetime.now(UTC).timestamp()
        log = Logger("expiry-test")
        self.watch = ExpiryWatch(self.clock, {"server": self.credentials}, self.wall, log)

    def wall(self) -> float:
        return self._start + self.clock.seconds()

    def pass_days(self, days: float) -> None:
        for _ in range(int(days)):
            self.clock.advance(DAY)


def test_there_is_one_line_at_each_threshold_and_one_at_the_end(tmp_path: Path, lines: list[str]) -> None:
    watched = Watched(tmp_path / "pki", days=397)
    watched.watch.start()
    days = []
    for day in range(1, 400):
        before = len(lines)
        watched.pass_days(1)
        days += [day] * (len(lines) - before)
    assert len(days) == 4
    assert days == pytest.approx([367, 390, 396, 397], abs=1)
    assert f"the server certificate of s2cs.example ({watched.server.certificate}) expires in 30 days" in lines[0]
    assert "expires in 7 days" in lines[1]
    assert "has expired, on" in lines[3]
    assert "scistream pki renew" in lines[0]
    watched.watch.stop()
    assert watched.clock.getDelayedCalls() == []


def test_a_look_at_the_start_tells_what_is_late_already_and_says_it_once(tmp_path: Path, lines: list[str]) -> None:
    watched = Watched(tmp_path / "pki")
    watched.clock.advance(36 * DAY)
    watched.watch.start()
    assert len(lines) == 1
    watched.watch.look()
    assert len(lines) == 1
    watched.watch.stop()


def test_a_renewed_certificate_is_warned_of_no_more(tmp_path: Path, lines: list[str]) -> None:
    watched = Watched(tmp_path / "pki")
    watched.clock.advance(36 * DAY)
    assert len(watched.watch.warnings()) == 1
    renew(watched.directory, "s2cs.example", 397)
    watched.credentials.read()()
    watched.watch.look()
    assert watched.watch.warnings() == lines == []


def test_an_authority_and_a_crl_are_watched_too(tmp_path: Path, lines: list[str]) -> None:
    watched = Watched(tmp_path / "pki", crl_days=19, authority_days=20)
    watched.watch.look()
    assert lines == []
    watched.clock.advance(15 * DAY)
    watched.watch.look()
    said = "\n".join(lines)
    assert f"the authority CN=SciStream authority,O=Example ({tmp_path}/pki/ca.pem) expires in 5 days" in said
    assert f"the CRL of CN=SciStream authority,O=Example ({tmp_path}/pki/crl.pem) expires in 4 days" in said
    assert "scistream pki crl" in said
    assert len(lines) == 3, "the certificate ends with its authority, which is not named twice"


def test_a_crl_that_has_expired_is_an_error_at_each_look(tmp_path: Path, lines: list[str]) -> None:
    watched = Watched(tmp_path / "pki", crl_days=5)
    watched.clock.advance(6 * DAY)
    watched.watch.look()
    watched.watch.look()
    assert len([line for line in lines if line.startswith("CRL: ") and "is refused until it is replaced" in line]) == 2


def test_what_others_are_told_names_no_file(tmp_path: Path) -> None:
    watched = Watched(tmp_path / "pki", crl_days=5)
    watched.clock.advance(4 * DAY)
    assert watched.watch.warnings()
    assert not any(str(tmp_path) in warning for warning in watched.watch.warnings())


def test_a_user_is_warned_about_their_own_files(tmp_path: Path) -> None:
    init_authority(tmp_path / "pki", "Example")
    ada, bob = issue(tmp_path / "pki", "user", "ada"), issue(tmp_path / "pki", "user", "bob", days=50)
    authorities = (tmp_path / "pki" / "ca.pem",)
    age(ada.certificate, life=timedelta(days=90), left=timedelta(days=3, hours=1))
    (warning,) = expiring_soon("your", CertificateFiles(ada.certificate, ada.key, authorities))
    assert warning.startswith(f"your certificate of scistream:user:ada ({ada.certificate}) expires in 3 days")
    assert expiring_soon("your", CertificateFiles(bob.certificate, bob.key, authorities)) == []


def ending(life: timedelta) -> Expiry:
    return Expiry("it", NOW, NOW + life, "")


NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_the_thresholds_of_a_long_life_are_30_7_and_1_days() -> None:
    year = ending(timedelta(days=397))
    levels = [year.level(year.ends - timedelta(days=days)) for days in (31, 30, 8, 7, 2, 1, 0.5, 0, -1)]
    assert levels == [0, 1, 1, 2, 2, 3, 3, 4, 4]


@given(minutes=st.integers(1, 20 * 365 * 24 * 60), share=st.floats(0, 1))
def test_nothing_is_warned_of_before_the_last_third_of_its_life_or_the_last_30_days(minutes: int, share: float) -> None:
    life = timedelta(minutes=minutes)
    one = ending(life)
    now = NOW + life * share
    assert (one.level(now) > 0) == (one.ends - now <= min(WARN_AHEAD, life / 3))
    assert (one.warning(now) is None) == (one.level(now) == 0)
    assert list(one.thresholds) == sorted(one.thresholds)


@pytest.mark.parametrize(("days", "looks"), [(1, 12), (6, 12)])
def test_a_short_lived_certificate_is_warned_of_in_time_and_not_for_its_whole_life(
    tmp_path: Path, lines: list[str], days: int, looks: int
) -> None:
    watched = Watched(tmp_path / "pki", days=days)
    watched.watch.start()
    said: list[float] = []
    while watched.clock.seconds() < days * DAY + 60:
        before = len(lines)
        (pending,) = watched.clock.getDelayedCalls()
        watched.clock.advance(max(0.0, pending.getTime() - watched.clock.seconds()))
        said += [watched.clock.seconds()] * (len(lines) - before)
        looks -= 1
    assert looks >= 0, "it looks only when there may be something to tell"
    assert len(said) == 4
    life = days * DAY + 3600
    for seconds, share in zip(said, (1.0, 7 / 30, 1 / 30, 0.0), strict=True):
        assert days * DAY - seconds == pytest.approx(life / 3 * share, abs=62)
    watched.watch.stop()
