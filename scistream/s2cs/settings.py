"""The settings of an S2CS, as read from s2cs.toml."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import field

from scistream.config import SettingProblem, below, expanded, unless
from scistream.http.settings import HttpSettings, listener_problems
from scistream.log_output import log_problems
from scistream.protocol.address import Address
from scistream.shared_settings import (
    ControllerSettings,
    Count,
    Limits,
    SettingsSection,
    address_or_none,
    exceeds,
    files_problems,
    plain_problems,
    trust_problems,
)
from scistream.text_kinds import AddressText, FileText, LogFormatText, LogLevelText, TimeOrNone, TimeText
from scistream.units import parse_grace, parse_life, parse_seconds


class ServerLimits(Limits, frozen=True, kw_only=True):
    """The limits of an S2CS: of its control links, and of what one user may request from the facility."""

    streams_per_identity: Count = 100
    requests_per_minute: Count = 1000


class GatewaySettings(SettingsSection, frozen=True, kw_only=True):
    """One S2DS of the pool: its name in logs, and the address at which it accepts its controller."""

    name: str
    address: AddressText


_USUAL_LIFE = "24h"


class S2CSConfig(SettingsSection, frozen=True, kw_only=True):
    """The settings of an S2CS; times are text, such as ``1h``."""

    gateways: list[GatewaySettings]
    listen: AddressText = "127.0.0.1:5000"
    state: FileText = "s2cs.sqlite"
    audit: str = "auto"
    certificate: FileText = ""
    key: FileText = ""
    authorities: list[FileText] = field(default_factory=list)
    crl: list[FileText] = field(default_factory=list)
    controller: ControllerSettings | None = None
    insecure: bool = False
    expires: TimeText = _USUAL_LIFE
    longest_expires: TimeText = "7d"
    hello_timeout: TimeText = "1h"
    release_broken_after: TimeOrNone = ""
    shutdown_grace: TimeText = "0s"
    policy: FileText = ""
    log_format: LogFormatText = "auto"
    log_level: LogLevelText = "info"
    limits: ServerLimits = field(default_factory=ServerLimits)
    http: HttpSettings = field(default_factory=HttpSettings)

    def problems(self) -> Iterator[SettingProblem]:
        """Yield the problems of the values."""
        yield from unless(Address.parse, self.listen, "listen")
        yield from plain_problems(self.insecure, self.listen, "listen")
        yield from below("limits", self.limits.problems())
        yield from below("http", self.http.problems())
        yield from listener_problems(self.http, self.listen, insecure=self.insecure)
        if not self.gateways:
            yield SettingProblem(("gateways",), "add at least one section [[gateways]] with name and address")
        for number, gateway in enumerate(self.gateways):
            if not gateway.name.strip() or not gateway.name.isprintable():
                why = f"{gateway.name!r} is not a printable name: choose one such as dtn1"
                yield SettingProblem((f"gateways[{number}].name",), why)
        names = [gateway.name for gateway in self.gateways]
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield SettingProblem(
                ("gateways",), f"{names.count(name)} gateways have the name {name!r}: give each a name of its own"
            )
        yield from self._addresses_problems()
        if not self.audit:
            yield SettingProblem(("audit",), "is empty: write 'auto', 'journal', 'none' or the name of a file")
        for key in ("expires", "longest_expires", "hello_timeout"):
            yield from unless(parse_life, getattr(self, key), key)
        if self.release_broken_after:
            yield from unless(parse_seconds, self.release_broken_after, "release_broken_after")
        yield from unless(parse_grace, self.shutdown_grace, "shutdown_grace")
        if self.expires != _USUAL_LIFE and exceeds(parse_seconds, self.expires, self.longest_expires):
            why = f"{self.expires!r} is longer than longest_expires, {self.longest_expires!r}"
            yield SettingProblem(("expires", "longest_expires"), why)
        for key in ("state", "audit", "policy"):
            yield from unless(expanded, getattr(self, key), key)
        yield from log_problems(self)
        yield from files_problems(self)
        if self.controller is not None:
            yield from below("controller", self.controller.problems())
        yield from trust_problems(self, "certificate", "key", "authorities", "controller")

    def _addresses_problems(self) -> Iterator[SettingProblem]:
        keys = {address_or_none(self.listen): "listen"}
        for number, gateway in enumerate(self.gateways):
            key = f"gateways[{number}].address"
            yield from unless(Address.parse, gateway.address, key)
            yield from plain_problems(self.insecure, gateway.address, key)
            address = address_or_none(gateway.address)
            other = keys.setdefault(address, key) if address is not None else key
            if other != key:
                why = f"{gateway.address!r} is also the address of {other}: give each an address of its own"
                yield SettingProblem((key, other), why)
