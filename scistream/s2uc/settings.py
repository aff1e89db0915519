"""The settings of the user client: the file s2uc.toml."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import field

from scistream.config import SettingProblem, below, expanded, unless
from scistream.protocol.address import Address
from scistream.shared_settings import SettingsSection, address_or_none, files_problems, superfluous
from scistream.text_kinds import AddressText, FileText


class FacilityAuthorities(SettingsSection, frozen=True, kw_only=True):
    """A facility, by the address of its S2CS, with authorities of its own in place of those for all facilities."""

    address: AddressText
    authorities: list[FileText]
    crl: list[FileText] = field(default_factory=list)

    def problems(self) -> Iterator[SettingProblem]:
        """Yield what is wrong with the values."""
        yield from unless(Address.parse, self.address, "address")
        for key in ("authorities", "crl"):
            for text in getattr(self, key):
                yield from unless(expanded, text, key)
        if not self.authorities:
            yield SettingProblem(
                ("authorities",), "empty, so that nothing vouches for this facility: name at least one authority"
            )


class S2UCConfig(SettingsSection, frozen=True, kw_only=True):
    """The settings of a user: their certificate and key, and the authorities of the facilities."""

    certificate: FileText = ""
    key: FileText = ""
    authorities: list[FileText] = field(default_factory=list)
    crl: list[FileText] = field(default_factory=list)
    insecure: bool = False
    facilities: list[FacilityAuthorities] = field(default_factory=list)

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
        if self.insecure:
            yield from superfluous(self, "certificate", "key", "authorities", "facilities")
