"""The policy of a facility: which identity may ask an S2CS for what. Values only; no I/O but reading the file.

Nothing is allowed that no rule allows. Rules that name an identity exactly come before those for its whole e-mail
domain, which then do not count; among either, the one with the role that is asked for decides. No two rules speak of
the same identity and role, so the order of the file decides nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from msgspec import Struct, field

from scistream.config import ConfigProblem, beside, load, parse_rate, parse_seconds, parse_size
from scistream.s2cs.identities import Index
from scistream.s2cs.rules import Asked, Decision, Rule, Standing, Target
from scistream.security.tls import CertificateProblem, Identity, issuer_name, load_authority
from scistream.wire.messages import MAX_CHANNELS, Role

V = TypeVar("V")

UNLIMITED = "unlimited"
MOST_STREAMS = 1_000_000
ROLES: tuple[Role, ...] = get_args(Role)
WAN_SECURITY = ("encrypt",)

NO_CERTIFICATES = "none"
"""The issuer of those who come by plain TCP: only where the S2CS is `insecure`, for a trial."""

_ISSUER = re.compile(r"sha256:[0-9a-f]{64}")
_MOST_TEXT = 200


class _Section(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all sections of the file share."""


class RuleSection(_Section, frozen=True, kw_only=True):
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

    def rule(self, number: int) -> Rule:
        """:raises ValueError: naming the key."""
        return Rule(
            number,
            _name("name", self.name),
            tuple(_one_of("roles", text, ROLES) for text in dict.fromkeys(self.roles)),
            rate=_limit("rate", parse_rate, self.rate),
            total_rate=_limit("total_rate", parse_rate, self.total_rate),
            num_conn=_count("num_conn", self.num_conn, MAX_CHANNELS),
            streams=_count("streams", self.streams, MOST_STREAMS),
            expires=_limit("expires", parse_seconds, self.expires),
            bytes_per_day=_limit("bytes_per_day", parse_size, self.bytes_per_day),
            wan_security=tuple(_one_of("wan_security", text, WAN_SECURITY) for text in self.wan_security),
            targets=tuple(_parsed("targets", Target.parse, text) for text in self.targets),
        )


class AdministratorSection(_Section, frozen=True, kw_only=True):
    """One section [[administrators]]: who may see, update and release the streams of others."""

    issuer: str
    identities: list[str]


class PolicyFile(_Section, frozen=True, kw_only=True):
    """All that may stand in policy.toml."""

    rules: list[RuleSection] = field(default_factory=list)
    administrators: list[AdministratorSection] = field(default_factory=list)

    def check(self) -> None:
        """What takes more than the types is checked by `load_policy`."""


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
            known = _parsed("identities", lambda text: self._rules.at(issuer, text), text)
            for other in known:
                if set(other.roles) & set(rule.roles) or not other.roles or not rule.roles:
                    raise ValueError(f"identities: {other} speaks of {text!r} already: only one rule may, for one role")
            known.append(rule)
        self.rules.append((rule, issuer, identities))
        self.issuers.add(issuer)

    def add_administrators(self, issuer: str, identities: Sequence[str]) -> None:
        """:raises ValueError: if an identity is none."""
        self.administrators.append((issuer, identities))
        for text in identities:
            _parsed("identities", lambda text: self._administrators.at(issuer, text), text).append(text)
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

    def decide(self, identity: Identity, asked: Asked, standing: Standing) -> Decision:
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

    :raises ConfigProblem: if it, or a certificate that it names, cannot be used: a sentence with the file, the rule
        by its number and the key.
    """
    try:
        sections = load(path, PolicyFile)
    except ConfigProblem as problem:
        raise ConfigProblem(_counted_from_one(str(problem))) from None
    issuers = _Issuers(path)
    policy = Policy()
    names: dict[str, int] = {}
    for number, section in enumerate(sections.rules, 1):
        with_name = f"rule {number} `{section.name}`"
        try:
            rule = section.rule(number)
            if names.setdefault(rule.name, number) != number:
                raise ValueError(f"name: rule {names[rule.name]} has it already: give each its own")
            policy.add(rule, issuers.read(section.issuer), _some(section.identities))
        except ValueError as wrong:
            raise ConfigProblem(f"{path}: {with_name}: {wrong}") from None
    for number, each in enumerate(sections.administrators, 1):
        try:
            policy.add_administrators(issuers.read(each.issuer), _some(each.identities))
        except ValueError as wrong:
            raise ConfigProblem(f"{path}: administrators {number}: {wrong}") from None
    return policy


def read_issuer(folder_of: Path, text: str) -> str:
    """The issuer that a setting or an option names: `sha256:...`, an authority's file, or `none`.

    :param folder_of: the policy file; relative paths start at its folder.
    :raises ValueError: with a sentence.
    """
    if text == NO_CERTIFICATES or _ISSUER.fullmatch(text):
        return text
    if text.startswith("sha256:"):
        raise ValueError(f"issuer: {text!r} is none: after sha256: come 64 digits of 0-9a-f, or name a file")
    if not text:
        raise ValueError("issuer: it is empty: name the file of the authority, or write sha256:...")
    try:
        return issuer_name(load_authority(beside(folder_of, text), "issuer"))
    except CertificateProblem as problem:
        raise ValueError(f"issuer: {problem}") from None


class _Issuers:
    """The issuers of one file; each certificate is read once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, str] = {}

    def read(self, text: str) -> str:
        """:raises ValueError: naming the key."""
        if text not in self._known:
            self._known[text] = read_issuer(self._path, text)
        return self._known[text]


def _counted_from_one(message: str) -> str:
    """Places in the file as the rules are counted elsewhere."""
    return re.sub(
        r"(: )(rules|administrators)\[(\d+)\]\.?(?=[\w:])?",
        lambda found: f"{found[1]}{'rule' if found[2] == 'rules' else found[2]} {int(found[3]) + 1}: ",
        message,
        count=1,
    )


def _name(key: str, text: str) -> str:
    if not text.strip() or len(text) > _MOST_TEXT or not text.isprintable():
        raise ValueError(f"{key}: {text!r} is no name: give 1 to {_MOST_TEXT} printable characters")
    return text


def _some(identities: list[str]) -> list[str]:
    if not identities:
        raise ValueError("identities: name at least one, as ada@example.org, scistream:user:ada or *@example.org")
    return identities


def _one_of(key: str, text: str, allowed: Sequence[V]) -> V:
    found = next((one for one in allowed if one == text), None)
    if found is None:
        raise ValueError(f"{key}: {text!r} is none; allowed are {', '.join(map(str, allowed))}")
    return found


def _limit(key: str, parse: Callable[[str], V], text: str) -> V | None:
    if text == UNLIMITED:
        return None
    try:
        return parse(text)
    except ValueError as wrong:
        raise ValueError(f"{key}: {wrong}, or {UNLIMITED}") from None


def _count(key: str, value: int | str, most: int) -> int | None:
    if value == UNLIMITED:
        return None
    if not isinstance(value, int) or not 1 <= value <= most:
        raise ValueError(f"{key}: {value!r} is out of range: a number from 1 to {most}, or {UNLIMITED}")
    return value


def _parsed(key: str, parse: Callable[[str], Any], text: str) -> Any:
    try:
        return parse(text)
    except ValueError as wrong:
        raise ValueError(f"{key}: {wrong}") from None
