"""The command `scistream policy check`: what a policy file says, and what it would decide."""

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
from scistream.shared_settings import DEFAULT_RATE
from scistream.tls.verify import Identity
from scistream.units import format_rate, format_seconds


@click.group()
def policy() -> None:
    """Look at the policy of an S2CS: the file that `policy` names in s2cs.toml."""


@dataclass(frozen=True)
class Verdict:
    """What would be decided for one role."""

    role: Role
    decision: Decision

    def line(self) -> str:
        """For a person."""
        if not self.decision.allowed:
            return f"{self.role}: refused ({self.decision.code}): {self.decision.reason}"
        rule = self.decision.rule
        longest = (
            f" for at most {format_seconds(rule.expires)}" if rule is not None and rule.expires is not None else ""
        )
        return f"{self.role}: {self.decision.reason}{longest}"

    def fields(self) -> dict[str, Any]:
        """For a program."""
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
@click.option("--as", "name", metavar="IDENTITY", help="Who asks: the e-mail address or URI in the certificate.")
@click.option(
    "--issuer", help="By whose word: sha256:..., or the file of the authority [default: the only one in FILE]."
)
@click.option(
    "--role",
    type=click.Choice([*ROLES, "both"], case_sensitive=False),
    default="both",
    show_default=True,
    help="As what.",
)
@click.option(
    "--rate",
    type=RATE,
    default=DEFAULT_RATE,
    metavar="RATE",
    help=f"Of the whole stream [default: {format_rate(DEFAULT_RATE)}].",
)
@click.option("--num-conn", type=click.IntRange(1, MAX_CHANNELS), default=1, show_default=True, help="Channels.")
@click.option("--expires", type=TIME, help="How long it shall live [default: as the facility has it].")
@click.option("--target", "targets", multiple=True, help="HOST:PORT where ProdApp listens; may be repeated.")
@click.option(
    "--listen-port",
    "listen_ports",
    type=click.IntRange(1, 65535),
    multiple=True,
    help="A port that is asked for by number; may be repeated.",
)
@click.option("--streams", type=click.IntRange(0), default=0, help="How many streams there are already.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
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
    """Say what the policy FILE allows; with --as, whether it allows somebody something, and by which rule.

    Nothing is asked of a running S2CS, whose own bounds (`longest_expires`, the capacity, `app_networks`) come on top.
    Exit status: 0 it is sound, or what was asked is allowed; 1 it is refused; 2 the file or the usage is wrong.
    """
    try:
        found = load_policy(file)
        if name is None:
            _refuse_questions(ctx)
            _explain(file, found, as_json)
            return
        identity = Identity(_issuer(file, found, issuer), name)
        for text in targets:
            Address.parse(text)
    except (ConfigError, ValueError) as problem:
        refuse(problem)
    verdicts = [
        Verdict(one, _decide(found, identity, asked, CurrentUsage(streams), targets))
        for one in ROLES
        for asked in [RequestedStream(one, rate, num_conn, expires, listen_ports=listen_ports)]
        if role.upper() in (one, "BOTH")
    ]
    _tell(found, identity, verdicts, as_json)
    sys.exit(0 if all(one.decision.allowed for one in verdicts) else 1)


def _refuse_questions(ctx: click.Context) -> None:
    """What somebody may do is not to be mistaken for the file being sound."""
    for option in ("issuer", "role", "rate", "num_conn", "expires", "targets", "listen_ports", "streams"):
        if ctx.get_parameter_source(option) is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError("that asks what somebody may do: say who, with --as")


def _decide(
    found: Policy, identity: Identity, asked: RequestedStream, standing: CurrentUsage, targets: tuple[str, ...]
) -> Decision:
    decision = found.decide(identity, asked, standing)
    if decision.allowed and asked.role == PROD and targets:
        return found.decide_targets(identity, asked.role, targets)
    return decision


def _issuer(file: Path, found: Policy, text: str | None) -> str:
    """:raises ValueError: if there is a choice, or what was chosen cannot be used."""
    if text is None:
        if len(found.issuers) != 1:
            raise ValueError(f"{file} names {len(found.issuers)} issuers: say which with --issuer")
        return next(iter(found.issuers))
    try:
        return read_issuer(Path("here"), text)
    except ValueError as wrong:
        raise ValueError(f"--issuer: {wrong}") from None


def _tell(found: Policy, identity: Identity, verdicts: list[Verdict], as_json: bool) -> None:
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
        click.echo(f"{identity.name} is an administrator: may see, update and release the streams of others")


def _explain(file: Path, found: Policy, as_json: bool) -> None:
    if as_json:
        rules = [
            {"number": rule.number, "name": rule.name, "issuer": issuer, "identities": list(names), "roles": rule.roles}
            for rule, issuer, names in found.rules
        ]
        administrators = [{"issuer": issuer, "identities": list(names)} for issuer, names in found.administrators]
        click.echo(json.dumps({"sound": True, "rules": rules, "administrators": administrators}))
        return
    click.echo(
        f"{file}: sound, {len(found.rules)} rule{'s' * (len(found.rules) != 1)}; what none of them allows is refused"
    )
    for rule, issuer, names in found.rules:
        click.echo(f"{rule}: {', '.join(names)} of {issuer}: {rule.in_words()}")
    for issuer, names in found.administrators:
        click.echo(f"administrators: {', '.join(names)} of {issuer}: may see, update and release the streams of others")
