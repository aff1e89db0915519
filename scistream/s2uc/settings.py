"""The settings of the user client: the file s2uc.toml."""

from __future__ import annotations

import re
from collections.abc import Iterator

from msgspec import field

from scistream.config import SettingProblem, below, expanded, unless
from scistream.protocol.address import Address
from scistream.shared_settings import SettingsSection, address_or_none, files_problems, superfluous
from scistream.text_kinds import AddressText, FileText

FACILITY_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,62}\Z")
"""What a facility may be called: unlike an address, a name has neither a dot nor a colon."""


class FacilitySettings(SettingsSection, frozen=True, kw_only=True):
    """A facility, by the address of its S2CS: its name, authorities of its own in place of those for all, or both."""

    address: AddressText
    name: str = ""
    authorities: list[FileText] = field(default_factory=list)
    crl: list[FileText] = field(default_factory=list)

    def problems(self) -> Iterator[SettingProblem]:
        """Yield what is wrong with the values."""
        yield from unless(Address.parse, self.address, "address")
        if self.name and not FACILITY_NAME.match(self.name):
            yield SettingProblem(
                ("name",),
                f"{self.name!r} is not a name for a facility: write letters, digits, - and _, with a letter first",
            )
        for key in ("authorities", "crl"):
            for text in getattr(self, key):
                yield from unless(expanded, text, key)
        if not self.authorities and not self.name:
            yield SettingProblem(
                ("authorities",),
                "empty, so that nothing vouches for this facility: name at least one authority, or give the facility a "
                "name and leave this out, if `authorities` above vouch for it",
            )
        if self.crl and not self.authorities:
            yield SettingProblem(("crl", "authorities"), "set, but `authorities` of this facility are not: set both")


class S2UCConfig(SettingsSection, frozen=True, kw_only=True):
    """The settings of a user: their certificate and key, and the authorities of the facilities."""

    certificate: FileText = ""
    key: FileText = ""
    authorities: list[FileText] = field(default_factory=list)
    crl: list[FileText] = field(default_factory=list)
    insecure: bool = False
    facilities: list[FacilitySettings] = field(default_factory=list)

    def problems(self) -> Iterator[SettingProblem]:
        """Yield what is wrong with the values."""
        yield from files_problems(self)
        for number, facility in enumerate(self.facilities):
            yield from below(f"facilities[{number}]", facility.problems())
        addresses = [address_or_none(facility.address) or facility.address for facility in self.facilities]
        if len(set(addresses)) != len(addresses):
            yield SettingProblem(
                ("facilities",), "two have the same address: name all authorities of a facility in one section"
            )
        names = [facility.name for facility in self.facilities if facility.name]
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield SettingProblem(("facilities",), f"two have the name {name!r}: give each a name of its own")
        if self.insecure:
            yield from superfluous(self, "certificate", "key", "authorities")
            if any(facility.authorities for facility in self.facilities):
                yield SettingProblem(("facilities", "insecure"), "has authorities, but insecure is true: leave out one")
