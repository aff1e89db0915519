"""The section ``[http]`` of a daemon's settings."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import field

from scistream.config import SettingProblem, unless
from scistream.protocol.address import Address
from scistream.shared_settings import IDENTITY_NAME, SettingsSection, address_or_none
from scistream.text_kinds import AddressOrNone


class HttpSettings(SettingsSection, frozen=True, kw_only=True):
    """The HTTP listener of a daemon.

    :ivar listen: the address; empty: no listener.
    :ivar stream_labels: whether there are metrics of each stream, with its uid as a label.
    """

    listen: AddressOrNone = ""
    stream_labels: bool = False

    @property
    def address(self) -> Address | None:
        """The address of the listener, or None if there is none."""
        return Address.parse(self.listen) if self.listen else None

    def problems(self) -> Iterator[SettingProblem]:
        """Yield the problems with the values."""
        if self.listen:
            yield from unless(Address.parse, self.listen, "listen")


class GatewayHttpSettings(HttpSettings, frozen=True, kw_only=True):
    """The HTTP listener of a gateway.

    :ivar administrators: the names in the certificates of those who may read it beyond loopback, beside its controller.
    """

    administrators: list[str] = field(default_factory=list)

    def problems(self) -> Iterator[SettingProblem]:
        """Yield the problems with the values."""
        yield from super().problems()
        for name in self.administrators:
            if not IDENTITY_NAME.fullmatch(name):
                why = f"{name!r} is not a whole name of a certificate: write it like scistream:user:ada, or an e-mail"
                yield SettingProblem(("administrators",), f"{why} address")


def listener_problems(http: HttpSettings, listen: str, *, insecure: bool) -> Iterator[SettingProblem]:
    """Yield the problems of the HTTP listener with the other settings of its daemon.

    :param listen: the address of the listener for control links.
    :param insecure: whether the daemon has no certificates.
    """
    address = address_or_none(http.listen) if http.listen else None
    if address is None:
        return
    if address == address_or_none(listen):
        why = f"{http.listen!r} is also the address of the control listener (listen): choose another port"
        yield SettingProblem(("http.listen", "listen"), why)
    if insecure and not address.is_on_loopback:
        why = (
            f"{http.listen} is not on loopback, where HTTP needs certificates, and insecure turns them off: listen on "
            "loopback, or use certificates (`scistream pki`)"
        )
        yield SettingProblem(("http.listen", "insecure"), why)
