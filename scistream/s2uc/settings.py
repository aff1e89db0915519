"""Settings of the user client."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import field

from scistream.config import SettingProblem, below, expanded, unless
from scistream.protocol.address import Address
from scistream.shared_settings import SettingsSection, address_or_none, files_problems, superfluous


class FacilityAuthorities(SettingsSection, frozen=True, kw_only=True):
    """A facility by the address of its S2CS, and the authorities that alone vouch for it."""

    address: str
    authorities: list[str]
    crl: list[str] = field(default_factory=list)

    def problems(self) -> Iterator[SettingProblem]:
        """What is wrong with the values."""
        yield from unless(Address.parse, self.address, "address")
        for key in ("authorities", "crl"):
            for text in getattr(self, key):
                yield from unless(expanded, text, key)
        if not self.authorities:
            yield SettingProblem(
                ("authorities",), "names none, and then nothing vouches for that facility: name one, or more"
            )


class S2UCConfig(SettingsSection, frozen=True, kw_only=True):
    """The settings of a user: her certificate and key, and the authorities of the facilities."""

    certificate: str = ""
    key: str = ""
    authorities: list[str] = field(default_factory=list)
    crl: list[str] = field(default_factory=list)
    insecure: bool = False
    facilities: list[FacilityAuthorities] = field(default_factory=list)

    def problems(self) -> Iterator[SettingProblem]:
        """What is wrong with the values."""
        yield from files_problems(self)
        for number, one in enumerate(self.facilities):
            yield from below(f"facilities[{number}]", one.problems())
        addresses = [address_or_none(one.address) or one.address for one in self.facilities]
        if len(set(addresses)) != len(addresses):
            yield SettingProblem(
                ("facilities",), "two of them have one address: name all authorities of a facility in one place"
            )
        if self.insecure:
            yield from superfluous(self, "certificate", "key", "authorities", "facilities")
