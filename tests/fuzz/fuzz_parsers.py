"""Short texts from people and far sides: addresses, networks, rates, configuration, connection maps, first lines, ...

The first byte chooses the parser.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

from fuzzing import fuzz

from scistream.config import ConfigError, load
from scistream.protocol.address import Address, inside, parse_network
from scistream.protocol.connect import MAX_LINE, Connect, accepted, encode_connect, read_answer, read_connect, refused
from scistream.protocol.errors import BadMessageError
from scistream.protocol.join_string import Join
from scistream.protocol.messages import Error, Resp
from scistream.s2cs.settings import S2CSConfig
from scistream.s2ds.settings import S2DSConfig
from scistream.s2uc.connection_map import connection_map, unused
from scistream.s2uc.settings import S2UCConfig
from scistream.shared_settings import parse_ports
from scistream.units import parse_rate, parse_seconds, parse_size

_CONFIG = Path(__file__).resolve().parents[2] / "conf"
_UID = "12345678-1234-4234-8234-123456789abc"
_folder = tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)


def _address(text: str) -> None:
    address = Address.parse(text)
    assert Address.parse(str(address)) == address
    assert str(address).isprintable(), "an address is written into logs"
    assert 1 <= address.port <= 65535
    if address.numeric is not None:
        inside(address.numeric, (parse_network("127.0.0.0/8"), parse_network("::/0")))


def _join(text: str) -> None:
    join = Join.parse(text)
    assert Join.parse(str(join)) == join
    assert join.app_key not in repr(join)


def _network(text: str) -> None:
    network = parse_network(text)
    assert parse_network(str(network)) == network


def _map(text: str) -> None:
    prod, _, rest = text.partition("|")
    cons, _, app = rest.partition("|")
    sides = [side.split(",") for side in (prod, cons, app)]
    maps = connection_map(*sides)
    assert set(maps["PROD"]) == set(sides[0])
    assert set(maps["PROD"].values()) <= set(sides[2])
    assert unused(sides[2], len(sides[0])) == sides[2][len(sides[0]) :]


def _connect(text: str) -> None:
    try:
        connect = read_connect(_line(text))
    except BadMessageError as bad:
        assert bad.msg
        return
    again = encode_connect(connect)
    assert len(again) <= MAX_LINE
    assert again.count(b"\n") == 1
    assert read_connect(again[:-1]) == connect


def _connect_answer(text: str) -> None:
    refusal = refused(_UID, "target-refused", text)
    assert len(refusal) <= MAX_LINE
    assert refusal.count(b"\n") == 1
    assert isinstance(read_answer(refusal[:-1]), Error)
    try:
        assert isinstance(read_answer(_line(text)), Resp | Error)
    except BadMessageError as bad:
        assert bad.msg


def _line(text: str) -> bytes:
    """Return the bytes that the text was made of."""
    return text.encode("utf-8", "surrogateescape")


def _config(kind: type) -> Callable[[str], None]:
    path = Path(_folder.name) / f"{kind.__name__}.toml"

    def read(text: str) -> None:
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
        try:
            load(path, kind)
        except ConfigError as problem:
            assert str(problem).startswith(str(path))

    return read


PARSERS: list[tuple[Callable[[str], object], list[str]]] = [
    (_address, ["127.0.0.1:5000", "[::1]:5100", "[fe80::1%eth0]:80", "lab.example:65535"]),
    (_join, [f"scistream://{_UID}:{'k' * 43}@[::1]:5000/prod?ca={'0' * 64}"]),
    (_network, ["10.0.0.0/8", "2001:db8::/32", "127.0.0.1"]),
    (parse_rate, ["10Gbit", "500 Mbit/s", "1.5"]),
    (parse_seconds, ["90s", "15min", "2d"]),
    (parse_size, ["64KiB", "2G"]),
    (parse_ports, ["5100-5200"]),
    (_map, ["127.0.0.1:1,127.0.0.1:2|127.0.0.1:3,127.0.0.1:4|127.0.0.1:5"]),
    (_connect, [encode_connect(Connect(uid=_UID, channel=3, number=7, ticket="QUJD")).decode()]),
    (
        _connect_answer,
        [
            accepted(_UID).decode(),
            accepted(_UID, "QUJD").decode(),
            refused(_UID, "target-refused", "nobody listens").decode(),
        ],
    ),
    (_config(S2CSConfig), [(_CONFIG / "s2cs.toml").read_text()]),
    (_config(S2DSConfig), [(_CONFIG / "s2ds.toml").read_text()]),
    (_config(S2UCConfig), [(_CONFIG / "s2uc.toml").read_text()]),
]


def one_input(data: bytes) -> None:
    """One text for one parser: it has a sentence to say against it, or takes it."""
    if not data:
        return
    parse, _ = PARSERS[data[0] % len(PARSERS)]
    try:
        parse(data[1:].decode("utf-8", "surrogateescape"))
    except ValueError as wrong:
        assert str(wrong)


if __name__ == "__main__":
    fuzz(one_input, [bytes([n]) + text.encode() for n, (_, texts) in enumerate(PARSERS) for text in texts])
