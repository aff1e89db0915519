"""The policy of an S2CS at work: what it is asked before a command of a user or an application has any effect.

`Authorizer` is asked once for each command, and knows the streams by their records alone. Its answer, a `Grant`, is all
that the command needs to know of the policy while it is carried out.
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
from scistream.protocol.messages import CONS, PROD, Rel, Req, Status, UpdateTargets
from scistream.s2cs.in_use import OwnerUse
from scistream.s2cs.policy.file import NO_CERTIFICATES, Policy, load_policy
from scistream.s2cs.policy.identities import canonical
from scistream.s2cs.policy.rules import CurrentUsage, Decision, RequestedStream
from scistream.s2cs.record import Record
from scistream.s2cs.settings import S2CSConfig
from scistream.shared_settings import resolve_path
from scistream.tls.files import load_certificates
from scistream.tls.verify import Identity, issuer_name
from scistream.units import parse_seconds

_log = Logger()


def policy_of(config: S2CSConfig, config_file: Path) -> Policy | None:
    """The policy that the settings of an S2CS name; None if they name none. Says in the log what it has found.

    :raises ConfigError: if it cannot be used.
    :raises CertificateError: if the files of `authorities` cannot be.
    """
    if not config.policy:
        _log.info("no policy: every user of a trusted authority may ask for streams, within longest_expires")
        return None
    file = resolve_path(config_file, config.policy)
    policy = load_policy(file)
    _log.info("policy {file}: {count} rules, and nothing else is allowed", file=str(file), count=len(policy.rules))
    if not policy.rules:
        _log.warn(
            "policy {file} has no rule, so nobody may ask for a stream: was it written whole? Without `policy` in the "
            "configuration every user of a trusted authority may",
            file=str(file),
        )
    for issuer in sorted(policy.issuers - _trusted(config, config_file)):
        _log.warn(
            "policy {file}: issuer {issuer} is not in `authorities`: nobody comes from it", file=file, issuer=issuer
        )
    return policy


def _trusted(config: S2CSConfig, config_file: Path) -> set[str]:
    """The issuers that users can come from.

    :raises CertificateError: if their files cannot be used.
    """
    if config.insecure:
        return {NO_CERTIFICATES}
    files = [resolve_path(config_file, name) for name in config.authorities]
    return {issuer_name(one) for file in files for one in load_certificates(file, "authorities")}


def owner_of(identity: Identity) -> str:
    """The owner that somebody is, in the form that records keep."""
    if identity == PLAIN_IDENTITY:
        return identity.name
    return f"{canonical(identity.name)} ({identity.issuer})"


def identity_of(owner: str) -> Identity:
    """The other way round."""
    name, found, issuer = owner.rpartition(" (")
    return Identity(issuer.removesuffix(")"), name) if found else Identity(PLAIN_IDENTITY.issuer, owner)


@dataclass(frozen=True)
class Grant:
    """The answer of the policy to one command.

    :param caller: who asks, in the form that records keep; None for an application.
    :param is_administrator: whether the caller may see, update and release the streams of all.
    :param decision: whether the owner of the stream may have such streams, and by which rule; None without a policy.
    :param life: how many seconds a new stream may live.
    :param refusal: why a new stream may not be had.
    :param is_probe: whether the stream has no program that could be reached.
    """

    caller: str | None
    is_administrator: bool = False
    decision: Decision | None = None
    life: float = 0.0
    refusal: StreamError | None = None
    is_probe: bool = False

    def shows(self, record: Record) -> bool:
        """Return whether the caller may see, update and release a stream: as its owner, or as an administrator."""
        return record.owner == self.caller or self.is_administrator

    @property
    def allows_role(self) -> bool:
        """Whether streams of this role may be had at all."""
        return self.decision is None or self.decision.allowed

    def check(self) -> None:
        """Refuse what may not be had, or what may not be had any more since the policy has changed.

        :raises StreamError: naming the rule.
        """
        if self.refusal is not None:
            raise self.refusal
        if self.decision is not None:
            self.decision.enforce()

    def check_targets(self, targets: Iterable[str]) -> None:
        """Refuse addresses at which ProdApp of the stream may not listen.

        :raises StreamError: `target-refused`, or `not-authorized` if the owner may have no such streams any more.
        """
        self.check()
        rule = self.decision.rule if self.decision is not None else None
        if rule is not None and not self.is_probe:
            rule.decide_targets(targets).enforce()


class Authorizer:
    """Who may do what at this S2CS.

    :param policy: None lets every user of a trusted authority ask, within `longest_expires`. May be replaced at any
        time: what streams have already goes on; what is asked from then on is held to the new one.
    :param used_today: how many bytes the streams of an owner have carried since midnight UTC.
    :param seconds: tells the time.
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
        self._asked: dict[str, tuple[float, int]] = {}
        """When the minute of each owner began, the earliest first, and how many new streams were asked for in it."""
        self.put_in_force(config, policy)

    def put_in_force(self, config: S2CSConfig, policy: Policy | None) -> None:
        """Hold what is asked from now on to these settings and this policy."""
        self.policy = policy
        self._usual_life = parse_seconds(config.expires)
        self._longest_life = parse_seconds(config.longest_expires)
        self._limits = config.limits

    def authorise(
        self,
        command: Req | UpdateTargets | Rel | Status,
        caller: str,
        record: Record | None = None,
        use: OwnerUse | None = None,
    ) -> Grant:
        """Ask the policy about a command of a user: once, with one answer for all that the command may lead to.

        :param caller: who sends it, in the form that records keep.
        :param record: the stream that is there under the name that the command gives; not for a new one.
        :param use: with a REQ for a new stream: the live streams of the caller. The request is counted.
        :raises StreamError: `no-capacity`, if the caller has asked for too many new streams within a minute.
        """
        if isinstance(command, Req) and record is None:
            return self._new_stream(caller, command, use or OwnerUse())
        grant = Grant(caller, self.policy is not None and self.policy.is_administrator(identity_of(caller)))
        if record is not None and grant.shows(record):
            return replace(self.of_stream(record), caller=caller, is_administrator=grant.is_administrator)
        if self.policy is not None and command.role is not None:
            return replace(grant, decision=self.policy.rule_for(identity_of(caller), command.role))
        return grant

    def of_stream(self, record: Record) -> Grant:
        """Ask the policy about a stream that is there, for its application or for the S2CS itself."""
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
        """Count a request for a new stream, whatever comes of it.

        :raises StreamError: `no-capacity`, if the owner has asked for too many within a minute.
        """
        now, most = self._seconds(), self._limits.requests_per_minute
        while self._asked and now - next(iter(self._asked.values()))[0] >= timing.REQUEST_WINDOW:
            del self._asked[next(iter(self._asked))]
        began, count = self._asked.setdefault(owner, (now, 0))
        if count >= most:
            raise StreamError(
                "no-capacity",
                f"{most} new streams were asked for within a minute, and one identity may ask for no more "
                f"(`requests_per_minute`): ask again in {began + timing.REQUEST_WINDOW - now:.0f} s",
            )
        self._asked[owner] = began, count + 1

    def _life(self, owner: str, request: Req, use: OwnerUse) -> float:
        """Return for how many seconds a new stream may be had.

        :raises StreamError: `not-authorized`, naming the rule.
        """
        if request.expires is not None:
            self._check_facility(request.expires)
        if self.policy is None:
            self._check_streams(request, use)
            return request.expires or min(self._usual_life, self._longest_life)
        asked = RequestedStream(
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
        assert decision.rule is not None, "an allowance comes from a rule"
        streams, rate = use.beside((request.uid, request.role), decision.rule.roles)
        standing = CurrentUsage(streams, rate, self._used_today(owner))
        decision.rule.decide(asked, standing).enforce()
        if decision.rule.streams is None:
            self._check_streams(request, use)
        longest = min(self._longest_life, decision.rule.expires or self._longest_life)
        return request.expires or min(self._usual_life, longest)

    def _check_facility(self, life: float) -> None:
        if life > self._longest_life:
            raise StreamError(
                "not-authorized",
                f"asked for a stream of {life:.0f} s, and this facility allows {self._longest_life:.0f} s at most",
            )

    def _check_streams(self, request: Req, use: OwnerUse) -> None:
        """:raises StreamError: `no-capacity`, if there is no rule that says it and the owner has enough streams."""
        there, _ = use.beside((request.uid, request.role), (PROD, CONS))
        if there >= self._limits.streams_per_identity:
            raise StreamError(
                "no-capacity",
                f"{there} streams of yours are here, and one identity may have {self._limits.streams_per_identity} at "
                "once (`streams_per_identity`): release one first",
            )

    def overdrawn(self, record: Record) -> str | None:
        """Why a live stream has to end: its owner has used up what the rule allows for a day."""
        if self.policy is None:
            return None
        rule = self.policy.rule_for(identity_of(record.owner), record.role).rule
        if rule is None or record.role not in rule.roles or rule.bytes_per_day is None:
            return None
        decision = rule.decide_volume(self._used_today(record.owner))
        return None if decision.allowed else decision.reason
