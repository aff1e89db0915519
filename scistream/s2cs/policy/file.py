"""The policy file of a facility: which identity may request what from an S2CS. The only I/O is reading the file.

A request is refused unless a rule allows it. If any rule names the identity exactly, rules for its e-mail domain are
ignored; of the remaining rules, the one for the requested role decides. Two rules must not cover the same identity and
role, so the order of rules in the file does not matter.
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
from scistream.text_kinds import PortsOrUnlimited, RateOrUnlimited, SizeOrUnlimited, TimeOrUnlimited, Unlimited
from scistream.tls.files import CertificateError
from scistream.tls.verify import Identity, issuer_name, load_authority
from scistream.units import parse_life, parse_rate, parse_size

V = TypeVar("V")

UNLIMITED = "unlimited"
MOST_STREAMS = 1_000_000
ROLES: tuple[Role, ...] = get_args(Role)
WAN_SECURITY = ("encrypt",)

NO_CERTIFICATES = "none"
"""The issuer of users that connect over plain TCP, which only an S2CS with `insecure` accepts."""

_ISSUER = re.compile(r"sha256:[0-9a-f]{64}")
_MOST_TEXT = 200


class _PolicySection(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The base of all sections of the file: an unknown key is an error."""


class RuleSection(_PolicySection, frozen=True, kw_only=True):
    """One section [[rules]]; rates, times and sizes as text (``10Gbit``, ``24h``, ``2T``)."""

    name: str
    issuer: str
    identities: list[str]
    roles: list[str]
    rate: RateOrUnlimited = UNLIMITED
    total_rate: RateOrUnlimited = UNLIMITED
    num_conn: int | Unlimited = UNLIMITED
    streams: int | Unlimited = UNLIMITED
    expires: TimeOrUnlimited = UNLIMITED
    bytes_per_day: SizeOrUnlimited = UNLIMITED
    wan_security: list[str] = field(default_factory=lambda: list(WAN_SECURITY))
    targets: list[str] = field(default_factory=lambda: ["0.0.0.0/0", "::/0"])
    listen_ports: PortsOrUnlimited = UNLIMITED

    def problems(self) -> Iterator[SettingProblem]:
        """Yield the problems of the values."""
        for key, parse in _RULE_PARSERS.items():
            yield from unless(parse, getattr(self, key), key)
        yield from unless(_not_empty, self.identities, "identities")

    def rule(self, number: int) -> Rule:
        """Return the rule that this section describes. The section must have no problems.

        :param number: the position of the section in the file, from 1.
        """
        return Rule(number, **{key: parse(getattr(self, key)) for key, parse in _RULE_PARSERS.items()})


class AdministratorSection(_PolicySection, frozen=True, kw_only=True):
    """One section [[administrators]]: who may see, update and release the streams of all users."""

    issuer: str
    identities: list[str]

    def problems(self) -> Iterator[SettingProblem]:
        """Yield the problems of the values."""
        yield from unless(_not_empty, self.identities, "identities")


class PolicyFile(_PolicySection, frozen=True, kw_only=True):
    """The content of policy.toml."""

    rules: list[RuleSection] = field(default_factory=list)
    administrators: list[AdministratorSection] = field(default_factory=list)

    def problems(self) -> Iterator[SettingProblem]:
        """Yield the problems of each section. `load_policy` checks issuers, and rules against each other."""
        for number, rule in enumerate(self.rules):
            yield from below(f"rules[{number}]", rule.problems())
        for number, administrators in enumerate(self.administrators):
            yield from below(f"administrators[{number}]", administrators.problems())


class Policy:
    """The rules and administrators of a policy file, as read by `load_policy`.

    :param rules: in the order of the file, each with its issuer and identities.
    """

    def __init__(self, rules: Iterable[tuple[Rule, str, Sequence[str]]] = ()) -> None:
        self.rules: list[tuple[Rule, str, Sequence[str]]] = []
        self.administrators: list[tuple[str, Sequence[str]]] = []
        self.issuers: set[str] = set()
        """All issuers in the file. Users certified by any other issuer are refused."""
        self._rules: Index[Rule] = Index()
        self._administrators: Index[str] = Index()
        for rule, issuer, identities in rules:
            self.add(rule, issuer, identities)

    def add(self, rule: Rule, issuer: str, identities: Sequence[str]) -> None:
        """Add a rule for identities under one issuer.

        :raises ValueError: if an identity is not valid, or an earlier rule covers it for the same role.
        """
        for text in dict.fromkeys(identities):
            earlier = self._rules.entries(issuer, text)
            for other in earlier:
                if set(other.roles) & set(rule.roles) or not other.roles or not rule.roles:
                    raise ValueError(f"{other} already covers {text!r}: write one rule per identity and role")
            earlier.append(rule)
        self.rules.append((rule, issuer, identities))
        self.issuers.add(issuer)

    def add_administrators(self, issuer: str, identities: Sequence[str]) -> None:
        """Add administrators under one issuer.

        :raises ValueError: if an identity is not valid.
        """
        self.administrators.append((issuer, identities))
        for text in identities:
            self._administrators.entries(issuer, text).append(text)
        self.issuers.add(issuer)

    def is_administrator(self, identity: Identity) -> bool:
        """Return True if `identity` may see, update and release the streams of all users."""
        return bool(self._administrators.find(identity))

    def rule_for(self, identity: Identity, role: Role) -> Decision:
        """Decide whether `identity` may have streams of this role at all, and by which rule."""
        rules = self._rules.find(identity)
        rule = next((rule for rule in rules if role in rule.roles), None)
        if rule is not None:
            return Decision(True, f"allowed by {rule}", rule)
        if not rules:
            return Decision(False, f"no rule of this facility's policy is for {identity}: ask its operator")
        allowed = " and ".join(f"{rule} allows {'the role ' if rule.roles else ''}{_roles(rule)}" for rule in rules)
        return Decision(False, f"{allowed}, but {role} was requested", rules[0])

    def decide(self, identity: Identity, request: RequestedStream, usage: CurrentUsage) -> Decision:
        """Decide whether `identity` may have a new stream.

        :param usage: what the user already has, without the requested stream.
        """
        decision = self.rule_for(identity, request.role)
        return decision.rule.decide(request, usage) if decision.allowed and decision.rule else decision

    def decide_targets(self, identity: Identity, role: Role, targets: Iterable[str]) -> Decision:
        """Decide whether ProdApp of a stream that `identity` owns may listen on these addresses."""
        decision = self.rule_for(identity, role)
        return decision.rule.decide_targets(targets) if decision.allowed and decision.rule else decision


def _roles(rule: Rule) -> str:
    return " and ".join(rule.roles) or "nothing"


def load_policy(path: Path) -> Policy:
    """Read a policy file.

    :raises ConfigError: if the file or a certificate named in it cannot be used. The message has a line for each
        problem, with the file, the number of the rule and the key.
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
            found.append(SettingProblem((f"{place}.name",), f"already the name of rule {first}: choose another one"))
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
    """Add a section to the policy. Yield the problems that prevent it."""
    try:
        issuer = issuers.read(section.issuer)
    except ValueError as wrong:
        yield SettingProblem((f"{place}.issuer",), str(wrong))
        return
    yield from unless(partial(add, issuer), section.identities, f"{place}.identities")


def _numbered(problem: SettingProblem, file: PolicyFile) -> str:
    """Return a problem as text, with the number and name of its rule in place of the index."""
    match = re.match(r"(rules|administrators)\[(\d+)\]\.?(.*)", problem.keys[0])
    if match is None:
        return str(problem)
    section, number, key = match[1], int(match[2]), match[3]
    name = f" `{file.rules[number].name}`" if section == "rules" and number < len(file.rules) else ""
    where = f"{'rule' if section == 'rules' else section} {number + 1}{name if name != ' ``' else ''}"
    return f"{where}: {key}: {problem.why}" if key else f"{where}: {problem.why}"


def read_issuer(folder_of: Path, text: str) -> str:
    """Return the issuer that a setting or an option names: `sha256:...`, an authority's file, or `none`.

    :param folder_of: a file; relative paths start at its folder.
    :raises ValueError: if `text` is not a fingerprint and not a certificate file that can be read.
    """
    if text == NO_CERTIFICATES or _ISSUER.fullmatch(text):
        return text
    if text.startswith("sha256:"):
        raise ValueError(
            f"{text!r} is not a fingerprint: write sha256: and 64 lowercase hexadecimal digits, or name a file"
        )
    if not text:
        raise ValueError("is empty: name the file of the authority, or write sha256:...")
    try:
        return issuer_name(load_authority(resolve_path(folder_of, text), "issuer"))
    except CertificateError as problem:
        raise ValueError(str(problem)) from None


class _Issuers:
    """The issuers of one policy file. Each certificate is read once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, str] = {}

    def read(self, text: str) -> str:
        """Return the issuer that `text` names, as `read_issuer` does."""
        if text not in self._known:
            self._known[text] = read_issuer(self._path, text)
        return self._known[text]


def _name(text: str) -> str:
    if not text.strip() or len(text) > _MOST_TEXT or not text.isprintable():
        raise ValueError(f"{text!r} is not a valid name: use 1 to {_MOST_TEXT} printable characters")
    return text


def _not_empty(identities: list[str]) -> list[str]:
    if not identities:
        raise ValueError("is empty: name at least one, like ada@example.org, scistream:user:ada or *@example.org")
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
        raise ValueError(f"{value!r} is out of range: write a number from 1 to {most}, or {UNLIMITED}")
    return value


_RULE_PARSERS: dict[str, Callable[[Any], Any]] = {
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
"""The parser for each key of a section [[rules]]."""
