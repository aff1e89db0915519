"""The policy of an S2CS at work: what it is asked before a command of a user or an application has any effect.

`Guard` knows the streams by their records alone. Whatever it forbids it raises as a StreamError, and changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

from twisted.logger import Logger

from scistream.config import S2CSConfig, beside, parse_seconds
from scistream.s2cs.identities import canonical
from scistream.s2cs.in_use import OwnerUse
from scistream.s2cs.policy import NO_CERTIFICATES, Policy, load_policy
from scistream.s2cs.record import Record
from scistream.s2cs.rules import Asked, Standing
from scistream.security.control import PLAIN_IDENTITY
from scistream.security.material import load_certificates
from scistream.security.tls import Identity, issuer_name
from scistream.wire.errors import StreamError
from scistream.wire.messages import CONS, PROD, Hello, Req, Role, UpdateTargets

_log = Logger()

MINUTE = 60.0


def policy_of(config: S2CSConfig, config_file: Path) -> Policy | None:
    """The policy that the settings of an S2CS name; None if they name none. Says in the log what it has found.

    :raises ConfigProblem: if it cannot be used.
    :raises CertificateProblem: if the files of `authorities` cannot be.
    """
    if not config.policy:
        _log.info("no policy: every user of a trusted authority may ask for streams, within longest_expires")
        return None
    file = beside(config_file, config.policy)
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

    :raises CertificateProblem: if their files cannot be used.
    """
    if config.insecure:
        return {NO_CERTIFICATES}
    files = [beside(config_file, name) for name in config.authorities]
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


class Guard:
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

    def count_request(self, owner: str) -> None:
        """Count a request for a new stream, whatever comes of it.

        :raises StreamError: `no-capacity`, if the owner has asked for too many within a minute.
        """
        now, most = self._seconds(), self._limits.requests_per_minute
        while self._asked and now - next(iter(self._asked.values()))[0] >= MINUTE:
            del self._asked[next(iter(self._asked))]
        began, count = self._asked.setdefault(owner, (now, 0))
        if count >= most:
            raise StreamError(
                "no-capacity",
                f"{most} new streams were asked for within a minute, and one identity may ask for no more "
                f"(`requests_per_minute`): ask again in {began + MINUTE - now:.0f} s",
            )
        self._asked[owner] = began, count + 1

    def sees_all(self, owner: str) -> bool:
        """Whether somebody is an administrator, who may see, update and release the streams of all."""
        return self.policy is not None and self.policy.is_administrator(identity_of(owner))

    def life(self, owner: str, request: Req, use: OwnerUse) -> float:
        """Whether a new stream may be had, and for how many seconds.

        :param use: the live streams of this owner.
        :raises StreamError: `not-authorized`, naming the rule.
        """
        if request.expires is not None:
            self._check_facility(request.expires)
        if self.policy is None:
            self._check_streams(request, use)
            return request.expires or min(self._usual_life, self._longest_life)
        asked = Asked(
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
        standing = Standing(streams, rate, self._used_today(owner))
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

    def may_ask(self, owner: str, role: Role) -> bool:
        """Whether somebody may have streams of this role at all."""
        return self.policy is None or self.policy.rule_for(identity_of(owner), role).allowed

    def check_still_allowed(self, record: Record) -> None:
        """Whether the owner of a stream may still have such streams: no, if the policy has changed meanwhile.

        :raises StreamError: `not-authorized`.
        """
        if self.policy is not None:
            self.policy.rule_for(identity_of(record.owner), record.role).enforce()

    def check_hello(self, record: Record, hello: Hello) -> None:
        """Whether ProdApp may listen where it says that it does. What is known already is not looked at again.

        :raises StreamError: `target-refused`, or `not-authorized` if the owner may have no such streams any more.
        """
        if hello.role == PROD and hello.listeners != record.app_listeners:
            self.check_targets(record, hello.listeners or [])

    def check_update(self, record: Record, command: UpdateTargets) -> None:
        """Whether these may be the targets of a stream, by the rule of its owner, whoever asks.

        :raises StreamError: as for `check_hello`.
        """
        self.check_targets(record, command.connection_map.values() if record.role == PROD else ())

    def check_targets(self, record: Record, targets: Iterable[str]) -> None:
        """Whether ProdApp of a stream may listen at these addresses.

        :raises StreamError: as for `check_hello`.
        """
        if self.policy is None:
            return
        is_probe = record.request is not None and record.request.protocol == "probe"  # it has no program to reach
        self.policy.decide_targets(identity_of(record.owner), record.role, () if is_probe else targets).enforce()

    def may_see(self, record: Record, owner: str) -> bool:
        """Whether somebody may see, update and release a stream: its owner, or an administrator."""
        return record.owner == owner or self.sees_all(owner)

    def overdrawn(self, record: Record) -> str | None:
        """Why a live stream has to end: its owner has used up what the rule allows for a day."""
        if self.policy is None:
            return None
        rule = self.policy.rule_for(identity_of(record.owner), record.role).rule
        if rule is None or record.role not in rule.roles or rule.bytes_per_day is None:
            return None
        decision = rule.decide_volume(self._used_today(record.owner))
        return None if decision.allowed else decision.reason
