"""What one rule of a policy allows, and the sentence with which it refuses. No I/O."""

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
    """Addresses that ProdApp may listen on: a network, and the first and the last port."""

    network: Network
    first_port: int = 1
    last_port: int = 65535

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read ``192.0.2.0/24``, ``192.0.2.7:5000``, ``192.0.2.0/24:5000-5010`` or ``[2001:db8::/32]:5000``.

        :raises ValueError: with a sentence that names the text.
        """
        network, ports = text, ""
        if text.startswith("["):
            network, closed, ports = text[1:].partition("]")
            if not closed or (ports and not ports.startswith(":")):
                raise ValueError(f"{text!r} is no target: write it like [2001:db8::/32]:5000-5010")
            ports = ports[1:] or "1-65535"
        elif text.count(":") == 1:
            network, _, ports = text.partition(":")
        else:
            ports = "1-65535"
        match = _PORTS.match(ports)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 1 <= first <= last <= 65535:
            raise ValueError(f"{text!r} has the ports {ports!r}: write one, or two like 5000-5010, from 1 to 65535")
        return cls(parse_network(network), first, last)

    def has(self, address: Address) -> bool:
        """Whether it is one of these. A name never is: nobody knows yet where it leads."""
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
    """What a REQ asks for. `rate` is in Mbit/s, `life` in seconds, None if it does not say."""

    role: Role
    rate: float
    num_conn: int
    life: float | None = None
    wan_security: str = "encrypt"
    listen_ports: Sequence[int] = ()


@dataclass(frozen=True)
class CurrentUsage:
    """What somebody has at this S2CS already, beside what is asked: live streams, their Mbit/s, bytes of this day."""

    streams: int = 0
    rate: float = 0.0
    bytes_today: int = 0


@dataclass(frozen=True)
class Decision:
    """Allowed, or refused, and why.

    :param reason: a sentence that names the rule.
    :param rule: the rule that decided; None if none speaks of the identity.
    """

    allowed: bool
    reason: str
    rule: Rule | None = None
    code: ErrorCode = "not-authorized"

    def enforce(self) -> None:
        """:raises StreamError: if it is a refusal."""
        if not self.allowed:
            raise StreamError(self.code, self.reason)


@dataclass(frozen=True)
class Rule:
    """What those of whom it speaks may do. None is no limit.

    :param number: its place in the file, from 1.
    :param rate: Mbit/s of one stream; `total_rate` of all streams of one identity together.
    :param streams: at once, of one identity.
    :param expires: the longest life of a stream, in seconds.
    :param bytes_per_day: of one identity, in both directions together, from midnight to midnight UTC.
    :param targets: where ProdApp may listen.
    :param listen_ports: ranges of the ports that may be asked for by number; none, if it is empty.
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

    def decide(self, asked: RequestedStream, standing: CurrentUsage) -> Decision:
        """Whether a stream may be had."""
        for limit in self._exceeded(asked, standing):
            return Decision(False, f"{self} allows {limit}", self)
        return Decision(True, f"allowed by {self}", self)

    def _exceeded(self, asked: RequestedStream, standing: CurrentUsage) -> Iterator[str]:
        if _above(asked.rate, self.rate):
            yield f"at most {self.rate:g} Mbit/s a stream, and {asked.rate:g} was asked"
        if _above(asked.num_conn, self.num_conn):
            yield f"at most {self.num_conn} channels a stream, and {asked.num_conn} were asked"
        if asked.life is not None and self.expires is not None and asked.life > self.expires:
            yield f"a life of at most {format_seconds(self.expires)}, and {format_seconds(asked.life)} was asked"
        if asked.wan_security not in self.wan_security:
            yield f"the WAN security {_listed(self.wan_security)}, and {asked.wan_security} was asked"
        for port in asked.listen_ports if self.listen_ports is not None else ():
            if not is_in(port, self.listen_ports or ()):
                yield f"the listen ports {in_words(self.listen_ports or ()) or 'none'}, and {port} was asked"
        if self.streams is not None and standing.streams + 1 > self.streams:
            yield f"at most {self.streams} streams at once, and there are {standing.streams}: release one first"
        if self.total_rate is not None and _above(standing.rate + asked.rate, self.total_rate):
            yield (
                f"at most {self.total_rate:g} Mbit/s over all streams, and with those that there are "
                f"{standing.rate + asked.rate:g} was asked"
            )
        if self.bytes_per_day is not None and standing.bytes_today >= self.bytes_per_day:
            yield self._used_up(standing.bytes_today)

    def decide_volume(self, bytes_today: int) -> Decision:
        """Whether what has gone over this day lets a stream go on."""
        if self.bytes_per_day is not None and bytes_today > self.bytes_per_day:
            return Decision(False, f"{self} allows {self._used_up(bytes_today)}", self)
        return Decision(True, f"allowed by {self}", self)

    def _used_up(self, bytes_today: int) -> str:
        assert self.bytes_per_day is not None
        return (
            f"{format_size(self.bytes_per_day)} a day, and {format_size(bytes_today)} have gone over: it begins anew "
            "at midnight UTC"
        )

    def decide_targets(self, targets: Iterable[str]) -> Decision:
        """Whether ProdApp may listen there.

        :param targets: addresses as the protocol writes them.
        """
        for text in targets:
            if not any(target.has(Address.parse(text)) for target in self.targets):
                where = ", ".join(map(str, self.targets)) or "none"
                return Decision(False, f"{self} allows the targets {where}, and not {text}", self, "target-refused")
        return Decision(True, f"allowed by {self}", self)

    def in_words(self) -> str:
        """All that it allows, for a person."""
        if not self.roles:
            return "may not ask for any stream"
        facts = [f"may ask for {' and '.join(self.roles)}"]
        facts.append(f"{self.rate:g} Mbit/s a stream" if self.rate is not None else "any rate")
        if self.total_rate is not None:
            facts.append(f"{self.total_rate:g} Mbit/s over all streams")
        facts.append(f"{self.num_conn} channels a stream" if self.num_conn is not None else "any number of channels")
        facts.append(f"{self.streams} streams at once" if self.streams is not None else "any number of streams")
        facts.append(
            f"for {format_seconds(self.expires)}" if self.expires is not None else "for as long as the facility lets"
        )
        if self.bytes_per_day is not None:
            facts.append(f"{format_size(self.bytes_per_day)} a day")
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
