"""What the user asks of `s2uc`: the options of a request and of its output, and the request file."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from msgspec import Struct

from scistream.config import BOM, ConfigError, SettingProblem, checked, raise_if_any, unless
from scistream.protocol.address import Address
from scistream.protocol.messages import CONS, MAX_CHANNELS, PROD, NumConn, Role
from scistream.shared_settings import parse_port_ranges
from scistream.units import DEFAULT_RATE, parse_rate, parse_seconds


class RequestOptions(Struct, frozen=True):
    """A request, from the command line or from a file: the arguments of `Client.request`."""

    prod: str
    cons: str
    num_conn: int
    rate: float
    expires: float | None
    uid: str
    label: str | None
    listen_ports: dict[Role, list[int]] = {}
    wan_dialer: Role | None = None


@dataclass(frozen=True)
class OutputOptions:
    """How a command reports its results, and how long it waits.

    :param as_json: print JSON lines instead of text.
    :param timeout: seconds until the command gives up; None waits without a limit.
    :param join_dir: the folder to write join strings to; None prints them.
    :param waits_for_release: stay until the stream is over.
    """

    as_json: bool = False
    timeout: float | None = None
    join_dir: Path | None = None
    waits_for_release: bool = False
    written: list[Path] = field(default_factory=list)
    """The join files that this command has written."""

    def join_files(self, uid: str) -> dict[Role, Path]:
        """Return the join file for each role, or nothing if join strings are printed."""
        return {role: self.join_dir / f"{uid}.{role.lower()}" for role in (PROD, CONS)} if self.join_dir else {}


_LISTEN_PORTS = re.compile(r"(prod|cons)=(.+)\Z", re.IGNORECASE)


def parse_listen_ports(texts: Sequence[str]) -> dict[Role, list[int]]:
    """Parse ``cons=5075``, ``prod=5100-5103`` or ``cons=5075,5080``: a side, and a port for each of its channels.

    :raises ValueError: if a text has another form or too many ports; the message names the text and the remedy.
    """
    ports: dict[Role, list[int]] = {}
    for text in texts:
        match = _LISTEN_PORTS.match(text)
        if match is None:
            raise ValueError(
                f"{text!r} is not SIDE=PORTS: write a side and its ports, like cons=5075 or prod=5100-5103"
            )
        role = PROD if match[1].lower() == "prod" else CONS
        for first, last in parse_port_ranges(match[2]):
            ports.setdefault(role, []).extend(range(first, last + 1))
            if len(ports[role]) > MAX_CHANNELS:
                raise ValueError(f"{text!r} has more ports than a stream has channels: {MAX_CHANNELS} at most")
    return ports


def parse_side(text: str) -> Role:
    """Parse ``prod`` or ``cons``, in any case.

    :raises ValueError: for any other text.
    """
    sides: dict[str, Role] = {"prod": PROD, "cons": CONS}
    try:
        return sides[text.lower()]
    except KeyError:
        raise ValueError(f"{text!r} is not a side of a stream: write prod or cons") from None


# -- the request file


class _FileReq(Struct, kw_only=True):
    """A request in a file. `rate` is in Mbit/s, or has the form of ``--rate``."""

    prod: str
    cons: str
    num_conn: NumConn = 1
    rate: float | str = DEFAULT_RATE
    expires: float | str | None = None
    uid: str | None = None
    label: str | None = None
    listen_ports: list[str] = []
    wan_dialer: str | None = None

    def problems(self) -> Iterator[SettingProblem]:
        """Yield what is wrong with the values."""
        yield from unless(Address.parse, self.prod, "prod")
        yield from unless(Address.parse, self.cons, "cons")
        yield from unless(parse_rate, str(self.rate), "rate")
        if self.expires is not None:
            yield from unless(parse_seconds, str(self.expires), "expires")
        if self.uid is not None:
            yield from unless(_uuid, self.uid, "uid")
        yield from unless(parse_listen_ports, self.listen_ports, "listen_ports")
        if self.wan_dialer is not None:
            yield from unless(parse_side, self.wan_dialer, "wan_dialer")


class _FileRel(Struct, kw_only=True):
    """A release in a file."""

    uid: str

    def problems(self) -> Iterator[SettingProblem]:
        """Yield nothing: a uid may be shortened, so any text will do."""
        return iter(())


_FORM = 'write {"cmd": "REQ", "prod": "HOST:PORT", "cons": "HOST:PORT"}, or {"cmd": "REL", "uid": "UID"}'


def read_file(file: Path) -> RequestOptions | str:
    """Return the request in a request file, or the uid if the file asks for a release.

    :raises ConfigError: if the file cannot be read, is not JSON, or is neither a request nor a release.
    """
    try:
        content = msgspec.json.decode(file.read_bytes().removeprefix(BOM))
    except OSError as problem:
        raise ConfigError(f"{file}: cannot be read: {problem.strerror}") from None
    except (msgspec.DecodeError, ValueError) as wrong:
        raise ConfigError(f"{file}: not valid JSON: {wrong}; {_FORM}") from None
    if not isinstance(content, dict) or content.get("cmd") not in ("REQ", "REL"):
        reason = f"its cmd is {json.dumps(content.get('cmd'))}" if isinstance(content, dict) else "not a JSON object"
        raise ConfigError(f"{file}: {reason}: {_FORM}")
    kind: type[_FileReq | _FileRel] = _FileReq if content.pop("cmd") == "REQ" else _FileRel
    command, problems = checked({name: value for name, value in content.items() if value is not None}, kind)
    raise_if_any(file, problems)
    if isinstance(command, _FileRel):
        return command.uid
    return RequestOptions(
        str(Address.parse(command.prod)),
        str(Address.parse(command.cons)),
        command.num_conn,
        parse_rate(str(command.rate)),
        None if command.expires is None else parse_seconds(str(command.expires)),
        str(uuid.uuid4() if command.uid is None else _uuid(command.uid)),
        command.label,
        parse_listen_ports(command.listen_ports),
        None if command.wan_dialer is None else parse_side(command.wan_dialer),
    )


def _uuid(text: str) -> uuid.UUID:
    try:
        return uuid.UUID(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a UUID") from None
