"""The commands `scistream pki`: certificates from request to revocation, at both ends of an enrolment.

authority.py, enrolment.py and revocation.py do the work; their `PkiError` becomes one line and exit status 2 here.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import click
from cryptography import x509

from scistream.pki.authority import Issued, Kind, fingerprint, init_authority, issue, load_authority, names_for
from scistream.pki.describe import describe, key_words
from scistream.pki.enrolment import (
    CertificateRequest,
    check_key_is_new_or_good,
    check_names_asked,
    install,
    make_request,
    read_request,
    sign_request,
)
from scistream.pki.register import Entry, PkiError, key_digest, kind_of, read_register
from scistream.pki.revocation import CRL_DAYS, REASONS, make_crl, renew, revoke
from scistream.tls.certificate_names import name_texts


@click.group()
def pki() -> None:
    """Issue, explain, renew and revoke the certificates of a facility.

    A facility has one authority, created once with init. The authority then issues certificates to its servers (S2CS
    and S2DS), to the S2CS as the controller of its S2DS, and to its users. Anybody who has ca.key can issue
    certificates: keep it off the gateways.

    \b
      scistream pki init pki --facility "Example Light Source"
      scistream pki issue pki server s2cs.example.org --san 192.0.2.7
      scistream pki issue pki controller s2cs
      scistream pki issue pki user ada@example.org

    To issue a certificate without copying a private key, let the user or gateway create the key and send a request:

    \b
      ada$      scistream pki request user ada@example.org --out .
      facility$ scistream pki sign pki ada@example.org.csr --kind user
      ada$      scistream pki install ada@example.org.pem \\
                  --key ada@example.org.key ~/.config/scistream
    """


_DIRECTORY = click.argument("directory", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
_FILE = click.Path(dir_okay=False, path_type=Path)
_KINDS = click.Choice(["server", "controller", "user"])
_KIND = click.argument("kind", type=_KINDS)
_SAN = click.option(
    "--san",
    multiple=True,
    metavar="NAME[,NAME...]",
    help="A further host name or address of a server; may be repeated.",
)
_DAYS = click.option("--days", default=397, show_default=True, help="How long the certificate is valid.")
_CRL_DAYS = click.option(
    "--crl-days", default=CRL_DAYS, show_default=True, help="How long the CRL is valid; replace it before that."
)


_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON in place of text.")


def _as_json(entry: Entry, now: datetime) -> dict[str, object]:
    return {
        "serial": f"{entry.serial:x}",
        "kind": entry.kind,
        "name": entry.name,
        "names": entry.names,
        "until": entry.until.isoformat(),
        "revoked": None if entry.revoked is None else entry.revoked.at.isoformat(),
        "state": entry.state(now),
    }


# -- the authority


@pki.command("init")
@_DIRECTORY
@click.option("--facility", required=True, metavar="NAME", help="The facility's name, shown in the certificate.")
@click.option("--days", default=3650, show_default=True, help="How long the authority is valid.")
@_JSON
def init_command(directory: Path, facility: str, days: int, as_json: bool) -> None:
    """Create a facility's authority: ca.pem and ca.key in DIR.

    No file is overwritten.
    """
    with _one_line_errors():
        files = init_authority(directory.resolve(), facility, days)
    pem = files.certificate.read_bytes()
    if as_json:
        _print(files, _certificate_in(files.certificate), authority_sha256=fingerprint(pem))
        return
    _say_written(files, "the authority of " + facility)
    click.echo(f"SHA-256 of the authority: {fingerprint(pem)}")
    click.echo(
        "\nNext: name this authority in the configuration of every server and user (s2cs.toml, s2ds.toml, s2uc.toml):\n"
        f'  authorities = ["{files.certificate}"]\n'
        "and issue a certificate to each:\n"
        f"  scistream pki issue {directory} server HOSTNAME"
    )


@pki.command("issue")
@_DIRECTORY
@_KIND
@click.argument("name")
@_SAN
@_DAYS
@_JSON
def issue_command(directory: Path, kind: str, name: str, san: tuple[str, ...], days: int, as_json: bool) -> None:
    """Issue a certificate with the authority in DIR: NAME.pem, with the whole chain, and NAME.key.

    \b
    server      an S2CS or S2DS; clients reach it by the host or address NAME
    controller  an S2CS towards its S2DS, under scistream:controller:NAME
    user        a user, under an e-mail address or the name scistream:user:NAME

    No file is overwritten.
    """
    directory = directory.resolve()
    with _one_line_errors():
        files = issue(directory, cast(Kind, kind), name, _names(san), days)
    certificate = _certificate_in(files.certificate)
    if as_json:
        _print(files, certificate)
        return
    _say_written(files, f"a {kind} certificate, valid until {certificate.not_valid_after_utc:%Y-%m-%d}")
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    click.echo("Names: " + ", ".join(str(each.value) for each in found))
    click.echo(f"\nNext: {_WHERE[kind]}")
    _say_settings(kind, files, directory / "ca.pem", certificate)
    click.echo("If you copy the key to another machine, let only its owner read it (chmod 600). Never copy ca.key.")


# -- enrolment without copying a key


@pki.command("request")
@_KIND
@click.argument("name")
@_SAN
@click.option(
    "--out",
    required=True,
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for both files.",
)
@_JSON
def request_command(kind: str, name: str, san: tuple[str, ...], out: Path, as_json: bool) -> None:
    """Create a key and a request for its certificate: NAME.key and NAME.csr.

    Send the request to the facility; the key stays here. KIND and NAME are as for `scistream pki issue`.
    """
    with _one_line_errors():
        key, csr = make_request(out, cast(Kind, kind), name, _names(san))
        made = read_request(csr)
    if as_json:
        click.echo(json.dumps({"key": str(key), "request": str(csr), "key_sha256": key_digest(made.csr)}))
        return
    click.echo(f"Wrote {key}: the private key, which stays on this machine")
    click.echo(f"Wrote {csr}: the request")
    click.echo(f"SHA-256 of the public key: {key_digest(made.csr)}")
    click.echo(
        f"\nNext: send {csr.name} to the facility, and tell its operator the SHA-256 through another channel. The "
        "operator signs it:\n"
        f"  scistream pki sign DIR {csr.name} --kind {kind}\n"
        "Install the certificate that comes back here:\n"
        f"  scistream pki install {name}.pem --key {key} DIR"
    )


@pki.command("sign")
@_DIRECTORY
@click.argument("request", metavar="FILE.csr", type=_FILE)
@click.option("--kind", type=_KINDS, required=True, help="What the certificate is for.")
@click.option("--name", help="Whom the certificate is for; without it, the name in the request is shown to confirm.")
@_SAN
@_DAYS
@_JSON
def sign_command(
    directory: Path, request: Path, kind: str, name: str | None, san: tuple[str, ...], days: int, as_json: bool
) -> None:
    """Sign a request with the authority in DIR: NAME.pem, with the whole chain.

    The certificate gets the key of the request, KIND, and the names that you give (--name, --san) or confirm. A
    request that asks for other names is refused.
    """
    directory = directory.resolve()
    with _one_line_errors():
        asked = read_request(request)
        more = _names(san)
        whom = name or asked.common_name
        if name is None and kind == "server":
            more += [text for text in _hosts(asked) if text not in (whom, *more)]
        names = names_for(cast(Kind, kind), whom, more)
        check_names_asked(asked, names)
        authority = load_authority(directory).certificate
        check_key_is_new_or_good(directory, asked, authority)
    if as_json and name is None:
        raise click.UsageError("--json does not ask for confirmation: say whom the certificate is for with --name")
    if not as_json:
        _say_asked(request, asked, kind, authority, days, name_texts(names))
    if name is None:
        click.confirm("Have you verified that the request comes from this user or server? Sign", abort=True)
    with _one_line_errors():
        files = sign_request(directory, asked, cast(Kind, kind), whom, more, days)
    certificate = _certificate_in(files.certificate)
    if as_json:
        _print(files, certificate, authority_sha256=fingerprint(authority), key_sha256=key_digest(asked.csr))
        return
    click.echo(f"Wrote {files.certificate}: valid until {certificate.not_valid_after_utc:%Y-%m-%d}")
    click.echo(f"SHA-256 of the authority: {fingerprint(authority)}")
    click.echo(
        f"\nNext: send {files.certificate.name} back (it is not secret), and the SHA-256 of the authority through "
        f"another channel. There run:\n  scistream pki install {files.certificate.name} --key {whom}.key DIR"
    )


@pki.command("install")
@click.argument("certificate", metavar="FILE.pem", type=_FILE)
@click.option("--key", required=True, type=_FILE, help="The key of the request.")
@click.option("--ca", type=_FILE, help="The authority to which the certificate must lead, if DIR has no ca.pem.")
@_DIRECTORY
@_JSON
def install_command(certificate: Path, key: Path, ca: Path | None, directory: Path, as_json: bool) -> None:
    """Check a certificate from the facility, and put it, its key and the authority into DIR.

    Existing files of the same name are replaced atomically, as for a renewal. Reload a running server afterwards.
    """
    directory = directory.resolve()
    with _one_line_errors():
        done = install(certificate, key, directory, ca)
    kind = kind_of(done.leaf)
    if as_json:
        _print(
            done.files, done.leaf, authority_sha256=fingerprint(done.anchor), authority_was_given=done.anchor_was_given
        )
        return
    click.echo(f"Wrote {done.files.certificate}: valid until {done.leaf.not_valid_after_utc:%Y-%m-%d}")
    click.echo(f"The key is {done.files.key}")
    click.echo(f"SHA-256 of the authority: {fingerprint(done.anchor)}")
    if not done.anchor_was_given:
        click.echo(
            "The authority came with the certificate: compare its SHA-256 with the facility before you trust it."
        )
    click.echo(f"\nNext: {_WHERE[kind]}")
    _say_settings(kind, done.files, done.authority, done.leaf)


# -- inspection


@pki.command("show")
@click.argument("file", type=_FILE)
@click.option("--ca", type=_FILE, help="The authority of a certificate, if the file does not contain it.")
@_JSON
def show_command(file: Path, ca: Path | None, as_json: bool) -> None:
    """Explain a certificate, a request, a CRL or a key.

    Exit status: 0 if nothing is wrong, 1 if there are problems, 2 if the file cannot be read.
    """
    with _one_line_errors():
        found = describe(file, datetime.now(UTC), ca)
    if as_json:
        click.echo(json.dumps({"lines": found.lines, "problems": found.problems}))
        sys.exit(1 if found.problems else 0)
    for line in found.lines:
        click.echo(line)
    for problem in found.problems:
        click.echo(f"PROBLEM: {problem}")
    sys.exit(1 if found.problems else 0)


@pki.command("list")
@_DIRECTORY
@_JSON
def list_command(directory: Path, as_json: bool) -> None:
    """List the certificates of the authority in DIR: serial number, kind, name, and whether each is valid.

    Certificates that were issued before the register (issued.jsonl) existed are not listed; revoke them by their file.
    """
    now = datetime.now(UTC)
    with _one_line_errors():
        entries = read_register(directory)
        if not entries and not (directory / "ca.pem").exists():
            raise PkiError(f"There is no authority in {directory}: create one with scistream pki init {directory}.")
    if as_json:
        click.echo(json.dumps([_as_json(entry, now) for entry in entries]))
        return
    for entry in entries:
        click.echo(f"{entry.serial:040x}  {entry.kind or 'unknown':<10}  {entry.name:<32}  {entry.state(now)}")
    if not entries:
        click.echo("no certificates have been issued yet")


# -- the end of a certificate


@pki.command("revoke")
@_DIRECTORY
@click.argument("which", metavar="NAME|FILE.pem|SERIAL")
@click.option(
    "--reason",
    type=click.Choice(list(REASONS)),
    metavar="REASON",
    default="unspecified",
    show_default=True,
    help=f"The reason in the CRL: {', '.join(REASONS)}.",
)
@_CRL_DAYS
@_JSON
def revoke_command(directory: Path, which: str, reason: str, crl_days: int, as_json: bool) -> None:
    """Revoke certificates by NAME, file or serial number, and write the new CRL, DIR/crl.pem.

    Revocation cannot be undone. It takes effect on servers whose configuration names the CRL (crl = ["crl.pem"]), once
    they have the new CRL and have been reloaded.
    """
    directory = directory.resolve()
    with _one_line_errors():
        revoked = revoke(directory, which, reason, crl_days)
    if as_json:
        now = datetime.now(UTC)
        click.echo(json.dumps({**_crl_as_json(directory), "revoked": [_as_json(entry, now) for entry in revoked]}))
        return
    for entry in revoked:
        click.echo(f"revoked {entry.name}, serial {entry.serial:x}")
    _say_crl(directory)


@pki.command("crl")
@_DIRECTORY
@_CRL_DAYS
@_JSON
def crl_command(directory: Path, crl_days: int, as_json: bool) -> None:
    """Write a new CRL, the list of revoked certificates: DIR/crl.pem.

    Do this before the old one expires: with an expired CRL, servers refuse all certificates of the authority.
    """
    directory = directory.resolve()
    with _one_line_errors():
        make_crl(directory, crl_days)
    if as_json:
        click.echo(json.dumps(_crl_as_json(directory)))
        return
    _say_crl(directory)


@pki.command("renew")
@_DIRECTORY
@click.argument("name")
@_DAYS
@click.option("--csr", type=_FILE, help="A request for a key that stays where it is; without it, a new key is created.")
@_JSON
def renew_command(directory: Path, name: str, days: int, csr: Path | None, as_json: bool) -> None:
    """Issue a new certificate with the names of the certificate NAME, and replace its files.

    The old certificate stays valid until it expires; revoke it by its serial number if its key may be compromised.
    """
    directory = directory.resolve()
    with _one_line_errors():
        files, old = renew(directory, name, days, read_request(csr) if csr is not None else None)
    leaf = _certificate_in(files.certificate)
    if as_json:
        _print(files, leaf, new_key=csr is None, replaced=_as_json(old, datetime.now(UTC)))
        return
    click.echo(f"Wrote {files.certificate}: valid until {leaf.not_valid_after_utc:%Y-%m-%d}")
    if csr is None:
        click.echo(f"Wrote {files.key}: a new private key")
    click.echo("Names: " + ", ".join(old.names))
    click.echo(f"The old certificate, serial {old.serial:x}, is {old.state(datetime.now(UTC))}.")
    if csr is None:
        click.echo(
            "\nNext: copy both files to where they are used, and reload the server (systemctl reload, or SIGHUP)."
        )
    else:
        click.echo(
            f"\nNext: send {files.certificate.name} back, install it there (scistream pki install), and reload the "
            "server."
        )


# -- output


_WHERE = {
    "server": "in s2cs.toml of an S2CS, or s2ds.toml of an S2DS, set",
    "controller": "in s2cs.toml, in the section [controller], set",
    "user": "in the user's s2uc.toml, set (with the authority of each facility that the user works with)",
}


def _say_settings(kind: str, files: Issued, authority: Path, certificate: x509.Certificate) -> None:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    click.echo(
        f'  certificate = "{files.certificate}"\n'
        f'  key = "{files.key}"\n'
        f'  authorities = ["{authority}"]'
        + (f'\nand in s2ds.toml of its gateways\n  controller = "{names[0].value}"' if kind == "controller" else "")
    )


def _print(files: Issued, certificate: x509.Certificate, **more: object) -> None:
    """Print a certificate that was written, as a JSON object."""
    names = x509.SubjectAlternativeName([])
    with suppress(x509.ExtensionNotFound):  # an authority has no subjectAltNames
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    facts = {
        "certificate": str(files.certificate),
        "key": str(files.key) if files.key.exists() else None,
        "serial": f"{certificate.serial_number:x}",
        "names": name_texts(names),
        "until": certificate.not_valid_after_utc.isoformat(),
    }
    click.echo(json.dumps({**facts, **more}))


def _say_asked(
    request: Path, asked: CertificateRequest, kind: str, authority: x509.Certificate, days: int, names: list[str]
) -> None:
    click.echo(f"Request: {request}")
    click.echo(f"Key: {key_words(asked.csr.public_key())}, SHA-256 {key_digest(asked.csr)}")
    click.echo(f"To be certified as a {kind} by {authority.subject.rfc4514_string()} for at most {days} days:")
    for text in names:
        click.echo(f"  {text}")


def _crl_of(directory: Path) -> tuple[Path, int, datetime]:
    """Return the file of the new CRL, how many certificates it lists, and when it expires."""
    file = directory / "crl.pem"
    crl = x509.load_pem_x509_crl(file.read_bytes())
    assert crl.next_update_utc is not None, "make_crl sets it"
    return file, len(crl), crl.next_update_utc


def _crl_as_json(directory: Path) -> dict[str, object]:
    file, count, until = _crl_of(directory)
    return {"crl": str(file), "count": count, "until": until.isoformat()}


def _say_crl(directory: Path) -> None:
    file, count, until = _crl_of(directory)
    click.echo(f"Wrote {file}: {count} revoked certificates, valid until {until:%Y-%m-%d}")
    click.echo(
        "\nNext: copy it to every server, name it in the server's configuration (once), and reload the server "
        "(systemctl reload, or SIGHUP):\n"
        f'  crl = ["{file}"]'
    )


def _say_written(files: Issued, what: str) -> None:
    click.echo(f"Wrote {files.certificate}: {what}")
    click.echo(f"Wrote {files.key}: its private key")


def _names(san: tuple[str, ...]) -> list[str]:
    return [text for part in san for text in (word.strip() for word in part.split(",")) if text]


def _hosts(asked: CertificateRequest) -> list[str]:
    return [str(name.value) for name in asked.names if isinstance(name, x509.DNSName | x509.IPAddress)]


def _certificate_in(file: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(file.read_bytes())


@contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except PkiError as wrong:
        raise _Refusal(str(wrong)) from wrong


class _Refusal(click.ClickException):
    """An error of the certificate tool, shown as one line on standard error."""

    exit_code = 2
    code = "certificate"
