"""The command `scistream policy check`: check a policy file, and try out its decisions."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from scistream.cli_support import RATE, TIME, refuse
from scistream.config import ConfigError
from scistream.protocol.address import Address
from scistream.protocol.messages import MAX_CHANNELS, PROD, Role
from scistream.s2cs.policy.file import ROLES, Policy, load_policy, read_issuer
from scistream.s2cs.policy.rules import CurrentUsage, Decision, RequestedStream
from scistream.tls.verify import Identity
from scistream.units import DEFAULT_RATE, format_rate, format_seconds


@click.group()
def policy() -> None:
    """Inspect the policy of an S2CS.

    The policy is the file that `policy` in s2cs.toml names.
    """


@dataclass(frozen=True)
class Verdict:
    """The decision that the policy would make for one role."""

    role: Role
    decision: Decision

    def line(self) -> str:
        """Return the decision as a line for a person."""
        if not self.decision.allowed:
            return f"{self.role}: refused ({self.decision.code}): {self.decision.reason}"
        rule = self.decision.rule
        longest = (
            f" for at most {format_seconds(rule.expires)}" if rule is not None and rule.expires is not None else ""
        )
        return f"{self.role}: {self.decision.reason}{longest}"

    def fields(self) -> dict[str, Any]:
        """Return the decision as a JSON object for a program."""
        rule = self.decision.rule
        return {
            "role": self.role,
            "allowed": self.decision.allowed,
            "code": None if self.decision.allowed else self.decision.code,
            "reason": self.decision.reason,
            "rule": {"number": rule.number, "name": rule.name} if rule is not None else None,
            "longest_life": rule.expires if rule is not None and self.decision.allowed else None,
        }


@policy.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--as", "name", metavar="IDENTITY", help="The user: the e-mail address or URI in the certificate.")
@click.option(
    "--issuer",
    help="Issuer of the user's certificate: sha256:..., or the authority's file [default: the only issuer in FILE].",
)
@click.option(
    "--role",
    type=click.Choice([*ROLES, "both"], case_sensitive=False),
    default="both",
    show_default=True,
    help="Side of the stream that the user requests.",
)
@click.option(
    "--rate",
    type=RATE,
    default=DEFAULT_RATE,
    metavar="RATE",
    help=f"Rate of the whole stream [default: {format_rate(DEFAULT_RATE)}].",
)
@click.option(
    "--num-conn", type=click.IntRange(1, MAX_CHANNELS), default=1, show_default=True, help="Number of channels."
)
@click.option("--expires", type=TIME, help="Life of the stream [default: the facility's].")
@click.option("--target", "targets", multiple=True, help="HOST:PORT on which ProdApp listens; may be repeated.")
@click.option(
    "--listen-port",
    "listen_ports",
    type=click.IntRange(1, 65535),
    multiple=True,
    help="A port that is requested by number; may be repeated.",
)
@click.option("--streams", type=click.IntRange(0), default=0, help="Number of live streams that the user already has.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def check(
    ctx: click.Context,
    file: Path,
    name: str | None,
    issuer: str | None,
    role: str,
    rate: float,
    num_conn: int,
    expires: float | None,
    targets: tuple[str, ...],
    listen_ports: tuple[int, ...],
    streams: int,
    as_json: bool,
) -> None:
    """Show what the policy FILE allows; with --as, whether it would allow a request, and by which rule.

    No running S2CS is asked; its own limits (`longest_expires`, capacity, `app_networks`) apply in addition.
    Exit status: 0 the file is valid, or the request is allowed; 1 the request is refused; 2 the file or the usage is
    wrong.
    """
    try:
        found = load_policy(file)
        if name is None:
            _refuse_request_options(ctx)
            _explain(file, found, as_json)
            return
        identity = Identity(_issuer(file, found, issuer), name)
        for text in targets:
            Address.parse(text)
    except (ConfigError, ValueError) as problem:
        refuse(problem)
    verdicts = [
        Verdict(one, _decide(found, identity, request, CurrentUsage(streams), targets))
        for one in ROLES
        for request in [RequestedStream(one, rate, num_conn, expires, listen_ports=listen_ports)]
        if role.upper() in (one, "BOTH")
    ]
    _print_verdicts(found, identity, verdicts, as_json)
    sys.exit(0 if all(one.decision.allowed for one in verdicts) else 1)


def _refuse_request_options(ctx: click.Context) -> None:
    """Refuse options of a request without --as: exit status 0 would look as if the request were allowed.

    :raises UsageError: naming --as.
    """
    for option in ("issuer", "role", "rate", "num_conn", "expires", "targets", "listen_ports", "streams"):
        if ctx.get_parameter_source(option) is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError("options of a request need --as, which names the user")


def _decide(
    found: Policy, identity: Identity, request: RequestedStream, usage: CurrentUsage, targets: tuple[str, ...]
) -> Decision:
    decision = found.decide(identity, request, usage)
    if decision.allowed and request.role == PROD and targets:
        return found.decide_targets(identity, request.role, targets)
    return decision


def _issuer(file: Path, found: Policy, text: str | None) -> str:
    """Return the issuer that --issuer names, or the only one of the file.

    :raises ValueError: if --issuer is needed and not given, or cannot be used.
    """
    if text is None:
        if len(found.issuers) != 1:
            raise ValueError(f"{file} names {len(found.issuers)} issuers: choose one with --issuer")
        return next(iter(found.issuers))
    try:
        return read_issuer(Path("here"), text)
    except ValueError as wrong:
        raise ValueError(f"--issuer: {wrong}") from None


def _print_verdicts(found: Policy, identity: Identity, verdicts: list[Verdict], as_json: bool) -> None:
    is_administrator = found.is_administrator(identity)
    if as_json:
        whole = {
            "allowed": all(one.decision.allowed for one in verdicts),
            "identity": identity.name,
            "issuer": identity.issuer,
            "administrator": is_administrator,
            "decisions": [one.fields() for one in verdicts],
        }
        click.echo(json.dumps(whole))
        return
    for one in verdicts:
        click.echo(one.line())
    if is_administrator:
        click.echo(f"{identity.name} is an administrator: may see, update and release the streams of all users")


def _explain(file: Path, found: Policy, as_json: bool) -> None:
    if as_json:
        rules = [
            {"number": rule.number, "name": rule.name, "issuer": issuer, "identities": list(names), "roles": rule.roles}
            for rule, issuer, names in found.rules
        ]
        administrators = [{"issuer": issuer, "identities": list(names)} for issuer, names in found.administrators]
        click.echo(json.dumps({"sound": True, "rules": rules, "administrators": administrators}))
        return
    click.echo(f"{file}: valid, {len(found.rules)} rule{'s' * (len(found.rules) != 1)}; everything else is refused")
    for rule, issuer, names in found.rules:
        click.echo(f"{rule}: {', '.join(names)} of {issuer}: {rule.in_words()}")
    for issuer, names in found.administrators:
        click.echo(
            f"administrators: {', '.join(names)} of {issuer}: may see, update and release the streams of all users"
        )
