"""One rule of a policy: what it allows, and the reason that it gives for a refusal. No I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from scistream.protocol.address import Address, Network, inside, parse_network
from scistream.protocol.errors import ErrorCode, StreamError
from scistream.protocol.messages import PROD, Role
from scistream.protocol.port_ranges import Ranges, in_words, is_in
from scistream.units import format_seconds, format_size

_PORTS = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?\Z", re.ASCII)


@dataclass(frozen=True)
class Target:
    """Addresses on which ProdApp may listen: a network, and an inclusive range of ports."""

    network: Network
    first_port: int = 1
    last_port: int = 65535

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read ``192.0.2.0/24``, ``192.0.2.7:5000``, ``192.0.2.0/24:5000-5010`` or ``[2001:db8::/32]:5000``.

        :raises ValueError: naming `text` and what is wrong with it.
        """
        network, ports = text, ""
        if text.startswith("["):
            network, closed, ports = text[1:].partition("]")
            if not closed or (ports and not ports.startswith(":")):
                raise ValueError(f"{text!r} is not a valid target: write it like [2001:db8::/32]:5000-5010")
            ports = ports[1:] or "1-65535"
        elif text.count(":") == 1:
            network, _, ports = text.partition(":")
        else:
            ports = "1-65535"
        match = _PORTS.match(ports)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 1 <= first <= last <= 65535:
            raise ValueError(
                f"{text!r}: invalid ports {ports!r}: write one port, or a range like 5000-5010, from 1 to 65535"
            )
        return cls(parse_network(network), first, last)

    def has(self, address: Address) -> bool:
        """Return True if `address` is allowed. A host name never is, because what it resolves to is not known."""
        numeric = address.numeric
        return (
            numeric is not None
            and self.first_port <= address.port <= self.last_port
            and inside(numeric, (self.network,))
        )

    def __str__(self) -> str:
        if (self.first_port, self.last_port) == (1, 65535):
            return str(self.network)
        host = f"[{self.network}]" if self.network.version == 6 else str(self.network)
        ports = f"{self.first_port}-{self.last_port}" if self.first_port != self.last_port else f"{self.first_port}"
        return f"{host}:{ports}"


ANYWHERE = (Target.parse("0.0.0.0/0"), Target.parse("::/0"))


@dataclass(frozen=True)
class RequestedStream:
    """The parts of a REQ that a rule can limit: `rate` in Mbit/s, `life` in seconds or None if not given."""

    role: Role
    rate: float
    num_conn: int
    life: float | None = None
    wan_security: str = "encrypt"
    listen_ports: Sequence[int] = ()


@dataclass(frozen=True)
class CurrentUsage:
    """What a user already has at this S2CS: live streams, their total rate in Mbit/s, and bytes carried today."""

    streams: int = 0
    rate: float = 0.0
    bytes_today: int = 0


@dataclass(frozen=True)
class Decision:
    """A decision of the policy, with its reason.

    :param reason: a sentence that names the rule.
    :param rule: the rule that decided; None if no rule applies to the identity.
    :param code: the error code of a refusal.
    """

    allowed: bool
    reason: str
    rule: Rule | None = None
    code: ErrorCode = "not-authorized"

    def enforce(self) -> None:
        """Raise the refusal, if this is one.

        :raises StreamError: with `code` and `reason`, unless the decision is to allow.
        """
        if not self.allowed:
            raise StreamError(self.code, self.reason)


@dataclass(frozen=True)
class Rule:
    """What the identities of one rule may do. A limit that is None does not apply.

    :param number: the position of the rule in the file, from 1.
    :param rate: most Mbit/s of one stream.
    :param total_rate: most Mbit/s of all streams of one identity together.
    :param num_conn: most channels of one stream.
    :param streams: most live streams of one identity.
    :param expires: longest life of a stream, in seconds.
    :param bytes_per_day: most bytes of one identity from midnight to midnight UTC, both directions together.
    :param targets: where ProdApp may listen.
    :param listen_ports: ranges of the ports that may be requested by number; an empty tuple allows none.
    """

    number: int
    name: str
    roles: tuple[Role, ...]
    rate: float | None = None
    total_rate: float | None = None
    num_conn: int | None = None
    streams: int | None = None
    expires: float | None = None
    bytes_per_day: int | None = None
    wan_security: tuple[str, ...] = ("encrypt",)
    targets: tuple[Target, ...] = ANYWHERE
    listen_ports: Ranges | None = None

    def __str__(self) -> str:
        return f"rule {self.number} `{self.name}`"

    def decide(self, request: RequestedStream, usage: CurrentUsage) -> Decision:
        """Decide whether a user may have a new stream.

        :param usage: what the user already has, without the requested stream.
        """
        for limit in self._exceeded(request, usage):
            return Decision(False, f"{self} allows {limit}", self)
        return Decision(True, f"allowed by {self}", self)

    def _exceeded(self, request: RequestedStream, usage: CurrentUsage) -> Iterator[str]:
        if _above(request.rate, self.rate):
            yield f"at most {self.rate:g} Mbit/s per stream, but {request.rate:g} was requested"
        if _above(request.num_conn, self.num_conn):
            yield f"at most {self.num_conn} channels per stream, but {request.num_conn} were requested"
        if request.life is not None and self.expires is not None and request.life > self.expires:
            yield f"a life of at most {format_seconds(self.expires)}, but {format_seconds(request.life)} was requested"
        if request.wan_security not in self.wan_security:
            yield f"WAN security {_listed(self.wan_security)}, but {request.wan_security} was requested"
        for port in request.listen_ports if self.listen_ports is not None else ():
            if not is_in(port, self.listen_ports or ()):
                yield f"listen ports {in_words(self.listen_ports or ()) or 'none'}, but {port} was requested"
        if self.streams is not None and usage.streams + 1 > self.streams:
            yield f"at most {self.streams} streams at once, and {usage.streams} exist: release one first"
        if self.total_rate is not None and _above(usage.rate + request.rate, self.total_rate):
            yield (
                f"at most {self.total_rate:g} Mbit/s over all streams, but with the existing ones "
                f"{usage.rate + request.rate:g} was requested"
            )
        if self.bytes_per_day is not None and usage.bytes_today >= self.bytes_per_day:
            yield self._used_up(usage.bytes_today)

    def decide_volume(self, bytes_today: int) -> Decision:
        """Decide whether a live stream may go on.

        :param bytes_today: bytes that all streams of its owner have carried since midnight UTC.
        """
        if self.bytes_per_day is not None and bytes_today > self.bytes_per_day:
            return Decision(False, f"{self} allows {self._used_up(bytes_today)}", self)
        return Decision(True, f"allowed by {self}", self)

    def _used_up(self, bytes_today: int) -> str:
        assert self.bytes_per_day is not None
        return (
            f"{format_size(self.bytes_per_day)} per day, and {format_size(bytes_today)} were carried today: the count "
            "starts again at midnight UTC"
        )

    def decide_targets(self, targets: Iterable[str]) -> Decision:
        """Decide whether ProdApp may listen on these addresses.

        :param targets: addresses in the form of the protocol.
        """
        for text in targets:
            if not any(target.has(Address.parse(text)) for target in self.targets):
                where = ", ".join(map(str, self.targets)) or "none"
                return Decision(False, f"{self} allows the targets {where}, but not {text}", self, "target-refused")
        return Decision(True, f"allowed by {self}", self)

    def in_words(self) -> str:
        """Describe everything that the rule allows, for a person."""
        if not self.roles:
            return "may not request any stream"
        facts = [f"may request {' and '.join(self.roles)}"]
        facts.append(f"{self.rate:g} Mbit/s per stream" if self.rate is not None else "any rate")
        if self.total_rate is not None:
            facts.append(f"{self.total_rate:g} Mbit/s over all streams")
        facts.append(f"{self.num_conn} channels per stream" if self.num_conn is not None else "any number of channels")
        facts.append(f"{self.streams} streams at once" if self.streams is not None else "any number of streams")
        facts.append(
            f"for {format_seconds(self.expires)}" if self.expires is not None else "for as long as the facility allows"
        )
        if self.bytes_per_day is not None:
            facts.append(f"{format_size(self.bytes_per_day)} per day")
        facts.append(f"WAN security {_listed(self.wan_security)}")
        if self.listen_ports is not None:
            facts.append(f"listen ports {in_words(self.listen_ports) or 'none'} by number")
        if PROD in self.roles:
            where = ", ".join(map(str, self.targets)) or "nowhere"
            facts.append("a producer anywhere" if self.targets == ANYWHERE else f"a producer at {where}")
        return ", ".join(facts)


_ROUNDING = 1e-9


def _above(asked: float, limit: float | None) -> bool:
    return limit is not None and asked > limit * (1 + _ROUNDING)


def _listed(words: Iterable[str]) -> str:
    return " or ".join(words) or "none"
