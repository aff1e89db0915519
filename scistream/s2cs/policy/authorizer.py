"""Authorization: apply the policy of an S2CS to the commands of users and applications.

The server asks `Authorizer` once for each command, before the command has any effect. The answer, a `Grant`, holds
everything that carrying out the command needs from the policy. Streams are known here by their records only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from twisted.logger import Logger

from scistream import timing
from scistream.links.tls_links import PLAIN_IDENTITY
from scistream.protocol.errors import StreamError
from scistream.protocol.messages import CONS, PROD, Extend, Rel, Req, Status, UpdateTargets
from scistream.s2cs.in_use import OwnerUse
from scistream.s2cs.policy.file import NO_CERTIFICATES, Policy, load_policy
from scistream.s2cs.policy.identities import canonical
from scistream.s2cs.policy.rules import CurrentUsage, Decision, RequestedStream
from scistream.s2cs.record import Record
from scistream.s2cs.settings import S2CSConfig
from scistream.shared_settings import resolve_path
from scistream.tls.files import load_certificates
from scistream.tls.verify import Identity, issuer_name
from scistream.units import format_seconds, parse_seconds

_log = Logger()


def policy_of(config: S2CSConfig, config_file: Path) -> Policy | None:
    """Load the policy that the settings of an S2CS name, and log a summary of it. Return None if they name none.

    :param config_file: relative paths start at its folder.
    :raises ConfigError: if the policy cannot be used.
    :raises CertificateError: if the files of `authorities` cannot be used.
    """
    if not config.policy:
        _log.info("no policy: every user of a trusted authority may request streams, within longest_expires")
        return None
    file = resolve_path(config_file, config.policy)
    policy = load_policy(file)
    _log.info("policy {file}: {count} rules; everything else is refused", file=str(file), count=len(policy.rules))
    if not policy.rules:
        _log.warn(
            "policy {file} has no rules, so every request is refused: check that the file is complete, or remove "
            "`policy` from the configuration to let every user of a trusted authority request streams",
            file=str(file),
        )
    for issuer in sorted(policy.issuers - _trusted_issuers(config, config_file)):
        _log.warn(
            "policy {file}: issuer {issuer} is not in `authorities`, so its rules apply to nobody",
            file=file,
            issuer=issuer,
        )
    return policy


def _trusted_issuers(config: S2CSConfig, config_file: Path) -> set[str]:
    """Return the issuers of certificates that the S2CS accepts from users.

    :raises CertificateError: if a file of `authorities` cannot be used.
    """
    if config.insecure:
        return {NO_CERTIFICATES}
    files = [resolve_path(config_file, name) for name in config.authorities]
    return {issuer_name(one) for file in files for one in load_certificates(file, "authorities")}


def owner_of(identity: Identity) -> str:
    """Return an identity in the form in which records keep the owner of a stream."""
    if identity == PLAIN_IDENTITY:
        return identity.name
    return f"{canonical(identity.name)} ({identity.issuer})"


def identity_of(owner: str) -> Identity:
    """Return the identity of an owner, which is in the form of `owner_of`."""
    name, found, issuer = owner.rpartition(" (")
    return Identity(issuer.removesuffix(")"), name) if found else Identity(PLAIN_IDENTITY.issuer, owner)


@dataclass(frozen=True)
class Grant:
    """The answer of the policy to one command.

    :param caller: the sender of the command, in the form of `owner_of`; None for an application.
    :param is_administrator: whether the caller may see, update and release the streams of all users.
    :param decision: whether the owner of the stream may have such streams, and by which rule; None without a policy.
    :param life: the life that a new stream is granted, in seconds.
    :param refusal: why a new stream is refused.
    :param is_probe: whether the stream is a probe, which connects to no program.
    """

    caller: str | None
    is_administrator: bool = False
    decision: Decision | None = None
    life: float = 0.0
    refusal: StreamError | None = None
    is_probe: bool = False

    def shows(self, record: Record) -> bool:
        """Return True if the caller may see, update and release a stream: as its owner, or as an administrator."""
        return record.owner == self.caller or self.is_administrator

    @property
    def allows_role(self) -> bool:
        """True if the caller may have streams of this role at all."""
        return self.decision is None or self.decision.allowed

    def check(self) -> None:
        """Raise the refusal of a new stream, or of an existing one that the policy no longer allows.

        :raises StreamError: naming the rule.
        """
        if self.refusal is not None:
            raise self.refusal
        if self.decision is not None:
            self.decision.enforce()

    def check_targets(self, targets: Iterable[str]) -> None:
        """Refuse addresses on which ProdApp of the stream may not listen.

        :raises StreamError: `target-refused`, or `not-authorized` if the owner may no longer have such streams.
        """
        self.check()
        rule = self.decision.rule if self.decision is not None else None
        if rule is not None and not self.is_probe:
            rule.decide_targets(targets).enforce()


class Authorizer:
    """Decide who may do what at this S2CS.

    :param policy: None lets every user of a trusted authority request streams, within `longest_expires`.
    :param used_today: returns how many bytes the streams of an owner have carried since midnight UTC.
    :param seconds: returns the monotonic time.
    """

    def __init__(
        self,
        config: S2CSConfig,
        policy: Policy | None,
        used_today: Callable[[str], int],
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        self._used_today = used_today
        self._seconds = seconds
        self._request_counts: dict[str, tuple[float, int]] = {}
        """For each owner, when the current minute began and how many new streams were requested in it, oldest first."""
        self.put_in_force(config, policy)

    def put_in_force(self, config: S2CSConfig, policy: Policy | None) -> None:
        """Apply these settings and this policy to commands from now on. Live streams keep what they were granted."""
        self.policy = policy
        self._usual_life = parse_seconds(config.expires)
        self._longest_life = parse_seconds(config.longest_expires)
        self._limits = config.limits

    def authorise(
        self,
        command: Req | UpdateTargets | Extend | Rel | Status,
        caller: str,
        record: Record | None = None,
        use: OwnerUse | None = None,
    ) -> Grant:
        """Return the answer of the policy to a command of a user. A REQ for a new stream is counted.

        :param caller: the sender of the command, in the form of `owner_of`.
        :param record: the stream that the command names; None if it does not exist.
        :param use: the live streams of the caller, for a REQ for a new stream.
        :raises StreamError: `no-capacity`, if the caller has requested too many new streams within a minute.
        """
        if isinstance(command, Req) and record is None:
            return self._new_stream(caller, command, use or OwnerUse())
        grant = Grant(caller, self.policy is not None and self.policy.is_administrator(identity_of(caller)))
        if record is not None and grant.shows(record):
            return replace(self.of_stream(record), caller=caller, is_administrator=grant.is_administrator)
        if self.policy is not None and command.role is not None:
            return replace(grant, decision=self.policy.rule_for(identity_of(caller), command.role))
        return grant

    def check_administrator(self, caller: str) -> None:
        """Refuse a command that only administrators may give.

        Without certificates and without a policy, every user of this machine may give it.

        :param caller: in the form of `owner_of`.
        :raises StreamError: `not-authorized`.
        """
        identity = identity_of(caller)
        if self.policy is None and identity == PLAIN_IDENTITY:
            return
        if self.policy is None:
            why = "this S2CS has no policy, and so no administrators: set `policy` in its configuration to a file with"
            raise StreamError("not-authorized", f"{why} a section [[administrators]] that names {identity.name}")
        if not self.policy.is_administrator(identity):
            raise StreamError(
                "not-authorized",
                f"{identity.name} is not an administrator of this facility: only those in [[administrators]] of its "
                "policy may do this",
            )

    def check_extension(self, grant: Grant, life: float) -> None:
        """Check that an existing stream may live for so long.

        :param grant: the answer to the command.
        :param life: seconds in all, counted from the request of the stream.
        :raises StreamError: `not-authorized`, if the owner may have no such stream any more.
        """
        grant.check()
        if grant.is_probe:
            raise StreamError("not-authorized", "a probe cannot be extended: request a new one")
        rule = grant.decision.rule if grant.decision is not None else None
        longest, by = self._longest_life, "this facility (`longest_expires`)"
        if rule is not None and rule.expires is not None and rule.expires < longest:
            longest, by = rule.expires, str(rule)
        if life > longest + timing.EXTENSION_TRAVELS:
            raise StreamError(
                "not-authorized",
                f"the stream would live for {format_seconds(round(life))} from its request, and {by} allows at most "
                f"{format_seconds(longest)}: extend it by less, or request a new stream",
            )

    def of_stream(self, record: Record) -> Grant:
        """Return what the policy says about an existing stream, for its application or for the S2CS itself."""
        is_probe = record.request is not None and record.request.protocol == "probe"
        if self.policy is None:
            return Grant(None, is_probe=is_probe)
        return Grant(None, decision=self.policy.rule_for(identity_of(record.owner), record.role), is_probe=is_probe)

    def _new_stream(self, owner: str, request: Req, use: OwnerUse) -> Grant:
        self._count_request(owner)
        try:
            return Grant(owner, life=self._life(owner, request, use))
        except StreamError as refusal:
            return Grant(owner, refusal=refusal)

    def _count_request(self, owner: str) -> None:
        """Count a request for a new stream, even if it is refused later.

        :raises StreamError: `no-capacity`, if the owner has requested too many within a minute.
        """
        now, most, counts = self._seconds(), self._limits.requests_per_minute, self._request_counts
        while counts and now - next(iter(counts.values()))[0] >= timing.REQUEST_WINDOW:
            del counts[next(iter(counts))]
        began, count = counts.setdefault(owner, (now, 0))
        if count >= most:
            raise StreamError(
                "no-capacity",
                f"{most} new streams were requested within a minute, which is the limit for one identity "
                f"(`requests_per_minute`): try again in {began + timing.REQUEST_WINDOW - now:.0f} s",
            )
        counts[owner] = began, count + 1

    def _life(self, owner: str, request: Req, use: OwnerUse) -> float:
        """Return the life that a new stream is granted, in seconds.

        :raises StreamError: `not-authorized`, naming the rule; `no-capacity` if the owner has too many streams.
        """
        if request.expires is not None:
            self._check_longest_life(request.expires)
        if self.policy is None:
            self._check_streams(request, use)
            return request.expires or min(self._usual_life, self._longest_life)
        requested = RequestedStream(
            request.role,
            request.rate,
            request.num_conn,
            request.expires,
            request.wan_security,
            tuple(request.listen_ports or ()),
        )
        identity = identity_of(owner)
        decision = self.policy.rule_for(identity, request.role)
        decision.enforce()
        assert decision.rule is not None, "only a rule can allow a request"
        streams, rate = use.excluding((request.uid, request.role), decision.rule.roles)
        usage = CurrentUsage(streams, rate, self._used_today(owner))
        decision.rule.decide(requested, usage).enforce()
        if decision.rule.streams is None:
            self._check_streams(request, use)
        longest = min(self._longest_life, decision.rule.expires or self._longest_life)
        return request.expires or min(self._usual_life, longest)

    def _check_longest_life(self, life: float) -> None:
        if life > self._longest_life:
            raise StreamError(
                "not-authorized",
                f"a life of {life:.0f} s was requested, but this facility allows at most {self._longest_life:.0f} s",
            )

    def _check_streams(self, request: Req, use: OwnerUse) -> None:
        """Refuse a new stream of an owner that has as many as `streams_per_identity` allows.

        :raises StreamError: `no-capacity`.
        """
        existing, _ = use.excluding((request.uid, request.role), (PROD, CONS))
        if existing >= self._limits.streams_per_identity:
            raise StreamError(
                "no-capacity",
                f"you have {existing} live streams here, and one identity may have {self._limits.streams_per_identity} "
                "at once (`streams_per_identity`): release one first",
            )

    def overdrawn(self, record: Record) -> str | None:
        """Return why a live stream must end because its owner has exceeded `bytes_per_day`, or None."""
        if self.policy is None:
            return None
        rule = self.policy.rule_for(identity_of(record.owner), record.role).rule
        if rule is None or record.role not in rule.roles or rule.bytes_per_day is None:
            return None
        decision = rule.decide_volume(self._used_today(record.owner))
        return None if decision.allowed else decision.reason
