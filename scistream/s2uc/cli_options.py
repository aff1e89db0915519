"""What the commands of `s2uc` share: the options for certificates and streams, and the client that they run with."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click
from click.shell_completion import CompletionItem

from scistream.cli_support import ParsedType, failure_names, run
from scistream.config import ConfigError
from scistream.protocol.address import Address
from scistream.protocol.messages import Role

if TYPE_CHECKING:
    from scistream.s2uc.client import Client
    from scistream.s2uc.settings import S2UCConfig

F = TypeVar("F", bound=Callable[..., Any])


# -- certificates, from options or the configuration file


@dataclass
class CertificateOptions:
    """The certificates that the options name. The configuration file gives those that the options leave out."""

    config: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    authorities: tuple[Path, ...] = ()
    insecure: bool = False

    def client(self, reactor: Any) -> Client:
        """Make a client with these certificates.

        :raises ConfigError: if neither the options nor the configuration file name certificates.
        """
        from scistream.s2uc.client import Client, arguments_of

        file = self._file()
        settings = self._settings(file)
        insecure = self.insecure or settings.insecure
        arguments = arguments_of(settings, file) | {"insecure": insecure}
        arguments |= {name: given for name in ("certificate", "key", "authorities") if (given := getattr(self, name))}
        authorities = arguments["authorities"] or arguments["facilities"]
        if not insecure and not (arguments["certificate"] and arguments["key"] and authorities):
            raise ConfigError(
                f"no certificates: name certificate, key and authorities in {file}, or give --certificate, --key and "
                "--authority (only for a test on loopback: --insecure needs none)"
            )
        return Client(**arguments, reactor=reactor)

    def settings(self) -> S2UCConfig:
        """Return the settings of the configuration file, or the defaults if there is none.

        :raises ConfigError: if the file cannot be read, or has a wrong setting.
        """
        return self._settings(self._file())

    def _settings(self, file: Path) -> S2UCConfig:
        from scistream.config import load
        from scistream.s2uc.settings import S2UCConfig

        return load(file, S2UCConfig) if self.config is not None or file.exists() else S2UCConfig()

    def _file(self) -> Path:
        """Return the configuration file, which need not exist.

        If the user's configuration folder is unknown and the options name all certificates, return an empty file.

        :raises ConfigError: if the folder is unknown and the options leave something out.
        """
        from scistream.s2uc.user_files import default_config

        try:
            return self.config or default_config()
        except ConfigError:
            if self.insecure or (self.certificate and self.key and self.authorities):
                return Path(os.devnull)
            raise

    def warnings(self) -> list[str]:
        """Return warnings about the user's own certificate files that expire soon.

        Files that cannot be read are left out: a command that needs them reports the reason.
        """
        try:
            file = self._file()
            if not file.exists():
                return []
            settings = self._settings(file)
            if settings.insecure or not settings.certificate:
                return []
            import msgspec

            from scistream.shared_settings import trust_of
            from scistream.tls.expiry import expiring_soon
            from scistream.tls.files import CertificateError
        except ConfigError:
            return []
        try:
            files = [trust_of(settings, file)]
            for facility in settings.facilities:
                of_facility = msgspec.structs.replace(settings, authorities=facility.authorities, crl=facility.crl)
                files.append(trust_of(of_facility, file))
            found = [expiring_soon("your", each) for each in files if each.authorities]
            return list(dict.fromkeys(warning for warnings in found for warning in warnings))
        except (ConfigError, CertificateError):
            return []


def _store_in(field: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    """Return a callback that stores an option in `CertificateOptions`, be it before the subcommand or after it."""

    def store(ctx: click.Context, _param: click.Parameter, value: Any) -> None:
        credentials = ctx.ensure_object(CertificateOptions)
        if value:
            setattr(credentials, field, value)

    return store


def credential_options(command: F) -> F:
    """Give a command the options that name certificates."""
    path = click.Path(path_type=Path, dir_okay=False)
    for option in (
        click.option(
            "--insecure",
            is_flag=True,
            expose_value=False,
            callback=_store_in("insecure"),
            help="Use plain TCP without certificates; on loopback only.",
        ),
        click.option(
            "--authority",
            "authorities",
            type=path,
            multiple=True,
            expose_value=False,
            callback=_store_in("authorities"),
            help="A certificate authority of the facilities (PEM file); may be repeated.",
        ),
        click.option(
            "--key",
            type=path,
            expose_value=False,
            callback=_store_in("key"),
            help="The private key of your certificate (PEM file).",
        ),
        click.option(
            "--certificate",
            type=path,
            expose_value=False,
            callback=_store_in("certificate"),
            help="Your certificate (PEM file).",
        ),
        click.option(
            "--config",
            type=path,
            expose_value=False,
            callback=_store_in("config"),
            help="The file that names your certificates [default: ~/.config/scistream/s2uc.toml].",
        ),
    ):
        command = option(command)
    return command


# -- facilities and streams


def _facility(text: str) -> str:
    """Check the address of a facility, or its name, which is looked up in s2uc.toml when the command runs."""
    from scistream.s2uc.settings import FACILITY_NAME

    return text if FACILITY_NAME.match(text) else str(Address.parse(text))


class _FacilityType(ParsedType):
    """HOST:PORT of an S2CS, or the name of a facility in s2uc.toml, which a shell can complete."""

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the names that begin so."""
        try:
            facilities = ctx.ensure_object(CertificateOptions).settings().facilities
        except ConfigError:
            return []
        named = [one for one in facilities if one.name and one.name.startswith(incomplete)]
        return [CompletionItem(one.name, help=one.address) for one in named]


FACILITY = _FacilityType("facility", _facility)


class _UidType(ParsedType):
    """A uid, which may be shortened, and which a shell can complete if the stream is in the user's list."""

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the uids in the list that begin so."""
        from scistream.s2uc.history import StreamHistory

        try:
            streams = StreamHistory().all()
        except ConfigError:
            return []
        return [
            CompletionItem(one.uid, help=one.label or f"{one.prod} to {one.cons}")
            for one in streams
            if one.uid.startswith(incomplete.lower())
        ]


UID = _UidType("uid", str)


JSON_RESULT = click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")


def _ports_by_side(_ctx: click.Context, _param: click.Parameter, texts: tuple[str, ...]) -> dict[Role, list[int]]:
    from scistream.s2uc.options import parse_listen_ports

    try:
        return parse_listen_ports(texts)
    except ValueError as wrong:
        raise click.BadParameter(str(wrong)) from None


LISTEN_PORT = click.option(
    "--listen-port",
    "listen_ports",
    multiple=True,
    metavar="SIDE=PORTS",
    callback=_ports_by_side,
    help="Ask for certain ports: cons=5075, cons=5075-5078 or prod=5100, one port for each channel. The gateways of "
    "that side listen on them. For programs that tell each other port numbers. If a facility does not grant a port, "
    "the request fails.",
)


def _side(_ctx: click.Context, _param: click.Parameter, text: str | None) -> Role | None:
    from scistream.s2uc.options import parse_side

    return None if text is None else parse_side(text)


WAN_DIALER = click.option(
    "--wan-dialer",
    type=click.Choice(["prod", "cons"], case_sensitive=False),
    callback=_side,
    help="The side whose gateways dial the others over the WAN [default: cons if the facilities allow it, else prod].",
)

# -- running


Work = Callable[["Client"], Coroutine[Any, Any, int]]


def finish(credentials: CertificateOptions, work: Work, uid: str | None = None) -> NoReturn:
    """Run the work with a client and end the process with its exit status.

    :param uid: the stream to name in the JSON failure, if the client cannot be made.
    """

    async def with_client(reactor: Any) -> int:
        with failure_names(uid=uid):
            client = credentials.client(reactor)
        try:
            return await work(client)
        finally:
            await client.close()

    sys.exit(run(with_client))
