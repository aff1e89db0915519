"""The policy of a facility: which identity may ask an S2CS for what. Values only; no I/O but reading the file.

Nothing is allowed that no rule allows. Rules that name an identity exactly come before those for its whole e-mail
domain, which then do not count; among either, the one with the role that is asked for decides. No two rules speak of
the same identity and role, so the order of the file decides nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, get_args

from msgspec import Struct, field

from scistream.config import SettingProblem, below, raise_if_any, read, unless
from scistream.protocol.messages import MAX_CHANNELS, Role
from scistream.s2cs.policy.identities import Index
from scistream.s2cs.policy.rules import CurrentUsage, Decision, RequestedStream, Rule, Target
from scistream.shared_settings import parse_chosen_ports, resolve_path
from scistream.tls.files import CertificateError
from scistream.tls.verify import Identity, issuer_name, load_authority
from scistream.units import parse_life, parse_rate, parse_size

V = TypeVar("V")

UNLIMITED = "unlimited"
MOST_STREAMS = 1_000_000
ROLES: tuple[Role, ...] = get_args(Role)
WAN_SECURITY = ("encrypt",)

NO_CERTIFICATES = "none"
"""The issuer of those who come by plain TCP: only where the S2CS is `insecure`, for a trial."""

_ISSUER = re.compile(r"sha256:[0-9a-f]{64}")
_MOST_TEXT = 200


class _PolicySection(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all sections of the file share."""


class RuleSection(_PolicySection, frozen=True, kw_only=True):
    """One section [[rules]]; rates, times and sizes as text (``10Gbit``, ``24h``, ``2T``)."""

    name: str
    issuer: str
    identities: list[str]
    roles: list[str]
    rate: str = UNLIMITED
    total_rate: str = UNLIMITED
    num_conn: int | str = UNLIMITED
    streams: int | str = UNLIMITED
    expires: str = UNLIMITED
    bytes_per_day: str = UNLIMITED
    wan_security: list[str] = field(default_factory=lambda: list(WAN_SECURITY))
    targets: list[str] = field(default_factory=lambda: ["0.0.0.0/0", "::/0"])
    listen_ports: str = UNLIMITED

    def problems(self) -> Iterator[SettingProblem]:
        """What is wrong with the values."""
        for key, parse in _RULE_VALUES.items():
            yield from unless(parse, getattr(self, key), key)
        yield from unless(_some, self.identities, "identities")

    def rule(self, number: int) -> Rule:
        """The rule, of values with which nothing is wrong."""
        return Rule(number, **{key: parse(getattr(self, key)) for key, parse in _RULE_VALUES.items()})


class AdministratorSection(_PolicySection, frozen=True, kw_only=True):
    """One section [[administrators]]: who may see, update and release the streams of others."""

    issuer: str
    identities: list[str]

    def problems(self) -> Iterator[SettingProblem]:
        """What is wrong with the values."""
        yield from unless(_some, self.identities, "identities")


class PolicyFile(_PolicySection, frozen=True, kw_only=True):
    """All that may stand in policy.toml."""

    rules: list[RuleSection] = field(default_factory=list)
    administrators: list[AdministratorSection] = field(default_factory=list)

    def problems(self) -> Iterator[SettingProblem]:
        """What is wrong with the values; issuers and what rules are to each other are looked at by `load_policy`."""
        for number, rule in enumerate(self.rules):
            yield from below(f"rules[{number}]", rule.problems())
        for number, administrators in enumerate(self.administrators):
            yield from below(f"administrators[{number}]", administrators.problems())


class Policy:
    """Who may do what. Made by `load_policy`.

    :param rules: in the order of the file, each with the issuer and the identities that it speaks of.
    """

    def __init__(self, rules: Iterable[tuple[Rule, str, Sequence[str]]] = ()) -> None:
        self.rules: list[tuple[Rule, str, Sequence[str]]] = []
        self.administrators: list[tuple[str, Sequence[str]]] = []
        self.issuers: set[str] = set()
        """Those that the file names: whoever comes from another one is allowed nothing."""
        self._rules: Index[Rule] = Index()
        self._administrators: Index[str] = Index()
        for rule, issuer, identities in rules:
            self.add(rule, issuer, identities)

    def add(self, rule: Rule, issuer: str, identities: Sequence[str]) -> None:
        """:raises ValueError: if an identity is none, or an earlier rule speaks of it and of the same role."""
        for text in dict.fromkeys(identities):
            known = self._rules.at(issuer, text)
            for other in known:
                if set(other.roles) & set(rule.roles) or not other.roles or not rule.roles:
                    raise ValueError(f"{other} speaks of {text!r} already: only one rule may, for one role")
            known.append(rule)
        self.rules.append((rule, issuer, identities))
        self.issuers.add(issuer)

    def add_administrators(self, issuer: str, identities: Sequence[str]) -> None:
        """:raises ValueError: if an identity is none."""
        self.administrators.append((issuer, identities))
        for text in identities:
            self._administrators.at(issuer, text).append(text)
        self.issuers.add(issuer)

    def is_administrator(self, identity: Identity) -> bool:
        """Whether somebody may see, update and release the streams of others."""
        return bool(self._administrators.find(identity))

    def rule_for(self, identity: Identity, role: Role) -> Decision:
        """Whether any rule lets somebody have streams of this role, and which."""
        rules = self._rules.find(identity)
        rule = next((rule for rule in rules if role in rule.roles), None)
        if rule is not None:
            return Decision(True, f"allowed by {rule}", rule)
        if not rules:
            return Decision(False, f"no rule of this facility's policy is for {identity}: ask its operator")
        allowed = " and ".join(f"{rule} allows {'the role ' if rule.roles else ''}{_roles(rule)}" for rule in rules)
        return Decision(False, f"{allowed}, and {role} was asked", rules[0])

    def decide(self, identity: Identity, asked: RequestedStream, standing: CurrentUsage) -> Decision:
        """Whether somebody may have a stream."""
        decision = self.rule_for(identity, asked.role)
        return decision.rule.decide(asked, standing) if decision.allowed and decision.rule else decision

    def decide_targets(self, identity: Identity, role: Role, targets: Iterable[str]) -> Decision:
        """Whether ProdApp of somebody's stream may listen at these addresses."""
        decision = self.rule_for(identity, role)
        return decision.rule.decide_targets(targets) if decision.allowed and decision.rule else decision


def _roles(rule: Rule) -> str:
    return " and ".join(rule.roles) or "nothing"


def load_policy(path: Path) -> Policy:
    """Read a policy file.

    :raises ConfigError: if it, or a certificate that it names, cannot be used: a sentence for each problem, with the
        file, the rule by its number and the key.
    """
    file, found = read(path, PolicyFile)
    policy = Policy()
    issuers = _Issuers(path)
    broken = {problem.keys[0].partition(".")[0] for problem in found}
    names: dict[str, int] = {}
    for number, section in enumerate(file.rules, 1):
        place = f"rules[{number - 1}]"
        first = names.setdefault(section.name, number)
        if first != number and section.name:
            found.append(SettingProblem((f"{place}.name",), f"rule {first} has it already: give each its own"))
        if place not in broken:
            found += _added(place, section, partial(policy.add, section.rule(number)), issuers)
    for number, one in enumerate(file.administrators):
        place = f"administrators[{number}]"
        if place not in broken:
            found += _added(place, one, policy.add_administrators, issuers)
    raise_if_any(path, [_numbered(problem, file) for problem in found])
    return policy


def _added(
    place: str,
    section: RuleSection | AdministratorSection,
    add: Callable[[str, Sequence[str]], None],
    issuers: _Issuers,
) -> Iterator[SettingProblem]:
    """Add what a section says to the policy; what stands in the way."""
    try:
        issuer = issuers.read(section.issuer)
    except ValueError as wrong:
        yield SettingProblem((f"{place}.issuer",), str(wrong))
        return
    yield from unless(partial(add, issuer), section.identities, f"{place}.identities")


def _numbered(problem: SettingProblem, file: PolicyFile) -> str:
    """A problem under the number and the name of its rule, as rules are called elsewhere."""
    match = re.match(r"(rules|administrators)\[(\d+)\]\.?(.*)", problem.keys[0])
    if match is None:
        return str(problem)
    section, number, key = match[1], int(match[2]), match[3]
    name = f" `{file.rules[number].name}`" if section == "rules" and number < len(file.rules) else ""
    where = f"{'rule' if section == 'rules' else section} {number + 1}{name if name != ' ``' else ''}"
    return f"{where}: {key}: {problem.why}" if key else f"{where}: {problem.why}"


def read_issuer(folder_of: Path, text: str) -> str:
    """The issuer that a setting or an option names: `sha256:...`, an authority's file, or `none`.

    :param folder_of: the policy file; relative paths start at its folder.
    :raises ValueError: with a sentence.
    """
    if text == NO_CERTIFICATES or _ISSUER.fullmatch(text):
        return text
    if text.startswith("sha256:"):
        raise ValueError(f"{text!r} is no fingerprint: after sha256: come 64 digits of 0-9a-f, or name a file")
    if not text:
        raise ValueError("it is empty: name the file of the authority, or write sha256:...")
    try:
        return issuer_name(load_authority(resolve_path(folder_of, text), "issuer"))
    except CertificateError as problem:
        raise ValueError(str(problem)) from None


class _Issuers:
    """The issuers of one file; each certificate is read once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, str] = {}

    def read(self, text: str) -> str:
        """:raises ValueError: with a sentence."""
        if text not in self._known:
            self._known[text] = read_issuer(self._path, text)
        return self._known[text]


def _name(text: str) -> str:
    if not text.strip() or len(text) > _MOST_TEXT or not text.isprintable():
        raise ValueError(f"{text!r} is no name: give 1 to {_MOST_TEXT} printable characters")
    return text


def _some(identities: list[str]) -> list[str]:
    if not identities:
        raise ValueError("name at least one, as ada@example.org, scistream:user:ada or *@example.org")
    return identities


def _each_of(allowed: Sequence[V], texts: list[str]) -> tuple[V, ...]:
    for text in texts:
        if text not in allowed:
            raise ValueError(f"{text!r} is not allowed; allowed are {', '.join(map(str, allowed))}")
    return tuple(one for text in dict.fromkeys(texts) for one in allowed if one == text)


def _limit(parse: Callable[[str], V], text: str) -> V | None:
    if text == UNLIMITED:
        return None
    try:
        return parse(text)
    except ValueError as wrong:
        raise ValueError(f"{wrong}, or {UNLIMITED}") from None


def _count(most: int, value: int | str) -> int | None:
    if value == UNLIMITED:
        return None
    if not isinstance(value, int) or not 1 <= value <= most:
        raise ValueError(f"{value!r} is out of range: a number from 1 to {most}, or {UNLIMITED}")
    return value


_RULE_VALUES: dict[str, Callable[[Any], Any]] = {
    "name": _name,
    "roles": partial(_each_of, ROLES),
    "rate": partial(_limit, parse_rate),
    "total_rate": partial(_limit, parse_rate),
    "num_conn": partial(_count, MAX_CHANNELS),
    "streams": partial(_count, MOST_STREAMS),
    "expires": partial(_limit, parse_life),
    "bytes_per_day": partial(_limit, parse_size),
    "wan_security": partial(_each_of, WAN_SECURITY),
    "listen_ports": partial(_limit, parse_chosen_ports),
    "targets": lambda texts: tuple(map(Target.parse, texts)),
}
"""How the values of a rule's section are read."""
