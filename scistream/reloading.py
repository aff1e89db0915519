"""What a daemon does with a configuration that was read again while it runs: which settings change, and which cannot.

Some settings are bound up with what the process was started with, as the address that it listens on. They keep the
value in force and are named, so that the operator knows that a restart is needed.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from scistream.config import Gateway, S2CSConfig, S2DSConfig
from scistream.toml_file import raise_if_any

AnyConfig = TypeVar("AnyConfig", S2CSConfig, S2DSConfig)

_TRUST = ("certificate", "key", "authorities", "crl", "controller")
"""Settings that go with `insecure`, which needs them or forbids them."""


class Change(NamedTuple):
    """The difference between the settings in force and those of a file.

    :ivar changed: the keys that get another value, as ``limits.links``.
    :ivar needs_restart: the keys whose new value counts only after a restart.
    """

    changed: list[str]
    needs_restart: list[str]


def differences(old: msgspec.Struct, new: msgspec.Struct) -> list[str]:
    """The keys under which two structs of one type differ; in a section that both have, the keys of the section."""
    found = []
    for name in old.__struct_fields__:
        before, after = getattr(old, name), getattr(new, name)
        if before == after:
            continue
        if isinstance(before, msgspec.Struct) and isinstance(after, msgspec.Struct):
            found += [f"{name}.{key}" for key in differences(before, after)]
        else:
            found.append(name)
    return found


def merge(file: Path, in_force: AnyConfig, new: AnyConfig, fixed: Collection[str]) -> tuple[AnyConfig, Change]:
    """The settings to put in force: the new ones, but for what needs a restart.

    :param file: where the new ones are from, for the sentences.
    :param fixed: the keys at the top of the file whose values need a restart.
    :raises ConfigProblem: if the new values contradict those that stay in force.
    """
    kept = {key: getattr(in_force, key) for key in fixed}
    if new.insecure != in_force.insecure:
        kept |= {key: getattr(in_force, key) for key in _TRUST}
    needs_restart = [key for key in differences(in_force, new) if key.partition(".")[0] in fixed]
    if isinstance(in_force, S2CSConfig) and isinstance(new, S2CSConfig):
        kept["gateways"], moved = _gateways(in_force.gateways, new.gateways)
        needs_restart += moved
    merged = msgspec.structs.replace(new, **kept)
    raise_if_any(file, list(merged.problems()))
    return merged, Change(differences(in_force, merged), needs_restart)


def _gateways(in_force: list[Gateway], new: list[Gateway]) -> tuple[list[Gateway], list[str]]:
    """The pool to put in force, in which no gateway has moved; and the keys of those that have in the file."""
    known = {gateway.name: gateway for gateway in in_force}
    pool = [known.get(gateway.name, gateway) for gateway in new]
    return pool, [f"gateways.{gateway.name}.address" for gateway in new if gateway not in pool]
