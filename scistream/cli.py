"""The command ``scistream``: certificates of a facility, a look at its S2CS's store and policy, and a demonstration.

What S2UC and the application controllers do has commands of its own. Nothing here makes a certificate itself:
`scistream.security.pki` does, and a `PkiError` of it becomes one line and exit status 2 here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import click
from cryptography import x509

from scistream import __version__
from scistream.demo.command import demo
from scistream.s2cs.command import store
from scistream.s2cs.policy_command import policy
from scistream.security.pki import Issued, Kind, PkiError, fingerprint, init_authority, issue


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="scistream")
def main() -> None:
    """Memory-to-memory streams between scientific facilities.

    A stream is asked for with s2uc, and an application joins it with appctrl; the servers of a facility are
    run with twistd s2cs and twistd s2ds. This command is for what comes before: the certificates by which
    all of them know each other.
    """


main.add_command(demo)
main.add_command(store)
main.add_command(policy)


@main.group()
def pki() -> None:
    """Make the certificates of a facility.

    A facility has one authority, made once with init. With issue it then certifies its servers (S2CS and S2DS),
    the S2CS as the controller of its S2DS, and its users. Whoever has ca.key can do so: keep it off the gateways.

    \b
      scistream pki init /etc/scistream/pki --facility "Example Light Source"
      scistream pki issue /etc/scistream/pki server s2cs.example.org --san 192.0.2.7
      scistream pki issue /etc/scistream/pki controller s2cs
      scistream pki issue /etc/scistream/pki user ada@example.org
    """


_DIRECTORY = click.argument("directory", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))


@pki.command("init")
@_DIRECTORY
@click.option("--facility", required=True, metavar="NAME", help="The facility's name, for people to read.")
@click.option("--days", default=3650, show_default=True, help="How long the authority is valid.")
def init_command(directory: Path, facility: str, days: int) -> None:
    """Make a facility's authority: ca.pem and ca.key in DIR.

    Nothing is overwritten.
    """
    with _one_line_errors():
        files = init_authority(directory.resolve(), facility, days)
    _say_written(files, "the authority of " + facility)
    pem = files.certificate.read_bytes()
    click.echo(f"SHA-256 of the authority: {fingerprint(pem)}")
    click.echo(
        "\nNext: every server and user names this authority in its configuration (s2cs.toml, s2ds.toml, s2uc.toml):\n"
        f'  authorities = ["{files.certificate}"]\n'
        "and gets a certificate from it:\n"
        f"  scistream pki issue {directory} server HOSTNAME"
    )


@pki.command("issue")
@_DIRECTORY
@click.argument("kind", type=click.Choice(["server", "controller", "user"]))
@click.argument("name")
@click.option(
    "--san",
    multiple=True,
    metavar="NAME[,NAME...]",
    help="A further host name or address of a server; may be repeated.",
)
@click.option("--days", default=397, show_default=True, help="How long the certificate is valid.")
def issue_command(directory: Path, kind: str, name: str, san: tuple[str, ...], days: int) -> None:
    """Issue a certificate with the authority in DIR: NAME.pem, with the whole chain, and NAME.key.

    \b
    server      an S2CS or an S2DS; NAME is the host name or address that it is dialled by
    controller  an S2CS, as its S2DS know it: scistream:controller:NAME
    user        a user, as policies know her: an e-mail address, or scistream:user:NAME

    Nothing is overwritten.
    """
    names = [text for part in san for text in (word.strip() for word in part.split(",")) if text]
    directory = directory.resolve()
    with _one_line_errors():
        files = issue(directory, cast(Kind, kind), name, names, days)
    certificate = x509.load_pem_x509_certificate(files.certificate.read_bytes())
    _say_written(files, f"a {kind} certificate, valid until {certificate.not_valid_after_utc:%Y-%m-%d}")
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    click.echo("Names: " + ", ".join(str(each.value) for each in found))
    click.echo(f"\nNext: {_WHERE[kind]}")
    click.echo(
        f'  certificate = "{files.certificate}"\n'
        f'  key = "{files.key}"\n'
        f'  authorities = ["{directory / "ca.pem"}"]'
        + (f'\nand in s2ds.toml of its gateways\n  controller = "{found[0].value}"' if kind == "controller" else "")
    )
    click.echo("Copied to another machine, the key stays readable by its owner alone (chmod 600); ca.key stays here.")


_WHERE = {
    "server": "in s2cs.toml of an S2CS, or s2ds.toml of an S2DS, set",
    "controller": "in s2cs.toml, in the section [controller], set",
    "user": "in the user's s2uc.toml set (authorities: one for each facility that she uses)",
}


def _say_written(files: Issued, what: str) -> None:
    click.echo(f"Wrote {files.certificate}: {what}")
    click.echo(f"Wrote {files.key}: its private key")


@contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except PkiError as wrong:
        raise _Refusal(str(wrong)) from wrong


class _Refusal(click.ClickException):
    """Bad usage in the words of what was called, not of the command line: one line on standard error."""

    exit_code = 2
