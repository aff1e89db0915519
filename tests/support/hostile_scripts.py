"""Mutations that keep to the form of a script: whole lines, and fields of the JSON objects in them."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

ODD: list[Any] = [
    None,
    True,
    0,
    1,
    2,
    -1,
    7,
    1024,
    2**53,
    2**63,
    5e-324,
    0.5,
    1e308,
    3600.0,
    "",
    "x",
    "\x00\n\x1b[2J",
    "PROD",
    "CONS",
    "Streaming",
    "Released",
    "Reserving",
    "12345678-1234-4234-8234-123456789abc",
    "87654321-4321-4234-8234-cba987654321",
    "127.0.0.1:7000",
    "127.0.0.1:0",
    "127.0.0.1:5001",
    "127.0.0.1:50010",
    "0.0.0.0:80",
    "192.0.2.1:80",
    "[::1]:80",
    "[::ffff:192.0.2.1]:80",
    "[fe80::1%eth0]:80",
    "gateway.example:5100",
    "10.0.0.0/8",
    "::/0",
    "k" * 43,
    "0" * 64,
    "$SEQ",
    "$KEY",
    "$CSR-PROD",
    "$CSR-CONS",
    "$LISTENER",
    "x" * 2000,
    [],
    {},
    ["127.0.0.1:7000"] * 9,
    {"$LISTENER": "127.0.0.1:7001"},
]

Script = list[bytes]


def mutate(script: Script, chance: random.Random, lines: Sequence[bytes]) -> None:
    """Make another script of this one, by a few changes.

    :param chance: makes all choices.
    :param lines: what a far side says that means well.
    """
    for _ in range(chance.choice([1, 1, 2, 4])):
        chance.choice(_CHANGES)(script, chance, lines)


def _another_line(script: Script, chance: random.Random, lines: Sequence[bytes]) -> None:
    script.insert(chance.randint(0, len(script)), chance.choice(lines))


def _drop(script: Script, chance: random.Random, lines: Sequence[bytes]) -> None:
    if len(script) > 1:
        del script[chance.randrange(len(script))]


def _repeat(script: Script, chance: random.Random, lines: Sequence[bytes]) -> None:
    script.insert(chance.randint(0, len(script)), chance.choice(script))


def _exchange(script: Script, chance: random.Random, lines: Sequence[bytes]) -> None:
    one, other = chance.randrange(len(script)), chance.randrange(len(script))
    script[one], script[other] = script[other], script[one]


def _let_time_pass(script: Script, chance: random.Random, lines: Sequence[bytes]) -> None:
    script.insert(chance.randint(0, len(script)), b"!%d" % chance.choice([0, 1, 3, 10, 16, 31, 60]))


def _other_link(script: Script, chance: random.Random, lines: Sequence[bytes]) -> None:
    at = chance.randrange(len(script))
    script[at] = script[at][1:] if script[at].startswith(b"C") else b"C" + script[at]


def _change_field(script: Script, chance: random.Random, lines: Sequence[bytes]) -> None:
    at = chance.randrange(len(script))
    prefix = b"C" if script[at].startswith(b"C") else b""
    try:
        content = json.loads(script[at].removeprefix(b"C"))
        donor = json.loads(chance.choice(lines).removeprefix(b"C"))
    except (ValueError, RecursionError):
        return
    if isinstance(content, dict) and isinstance(donor, dict):
        _change(content, chance, list(donor.items()))
        script[at] = prefix + json.dumps(content).encode()


def _change(content: dict[str, Any], chance: random.Random, donated: list[tuple[str, Any]]) -> None:
    inner = [value for value in content.values() if isinstance(value, dict)]
    inner += [one for value in content.values() if isinstance(value, list) for one in value if isinstance(one, dict)]
    if inner and chance.random() < 0.4:
        _change(chance.choice(inner), chance, donated)
    elif content and chance.random() < 0.15:
        del content[chance.choice(list(content))]
    elif chance.random() < 0.3:
        name, value = chance.choice(donated)
        content[name] = value
    elif content:
        name = chance.choice(list(content))
        content[name] = _other_value(content[name], chance)


def _other_value(value: Any, chance: random.Random) -> Any:
    if isinstance(value, list) and value and chance.random() < 0.6:
        changed = [*value, chance.choice([*value, *ODD])]
        return chance.sample(changed, chance.randint(0, len(changed)))
    if isinstance(value, int | float) and not isinstance(value, bool) and chance.random() < 0.6:
        return value + chance.choice([-1, 1, 0.5, 10, 1000])
    if isinstance(value, str) and value and chance.random() < 0.3:
        cut = chance.randrange(len(value))
        return value[:cut] + chance.choice(["", "%", "\u2028", "x", ":", value]) + value[cut + 1 :]
    return chance.choice(ODD)


def _spoil(script: Script, chance: random.Random, lines: Sequence[bytes]) -> None:
    at = chance.randrange(len(script))
    cut = chance.randint(0, len(script[at]))
    script[at] = script[at][:cut] + chance.randbytes(chance.randint(0, 3)) + script[at][cut + chance.randint(0, 9) :]


_CHANGES = [_change_field] * 6 + [_spoil, _another_line, _drop, _repeat, _exchange, _let_time_pass, _other_link]
