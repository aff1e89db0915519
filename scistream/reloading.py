"""What a daemon does with a configuration that was read again while it runs: which settings change, and which cannot.

Some settings are bound up with what the process was started with, as the address that it listens on. They keep the
value in force and are named, so that the operator knows that a restart is needed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar, cast

import msgspec

from scistream.config import SettingProblem, raise_if_any


class _OfDaemon(Protocol):
    """What the configurations of the daemons have in common."""

    @property
    def insecure(self) -> bool: ...

    def problems(self) -> Iterator[SettingProblem]: ...


AnyConfig = TypeVar("AnyConfig", bound=_OfDaemon)

_TRUST = ("certificate", "key", "authorities", "crl", "controller")
"""Settings that go with `insecure`, which needs them or forbids them."""


class Change(NamedTuple):
    """The difference between the settings in force and those of a file.

    :ivar changed: the keys that get another value, as ``limits.links``.
    :ivar needs_restart: the keys whose new value counts only after a restart.
    """

    changed: list[str]
    needs_restart: list[str]


def differences(old: Any, new: Any) -> list[str]:
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


def merge(
    file: Path,
    in_force: AnyConfig,
    new: AnyConfig,
    fixed: Collection[str],
    kept: Mapping[str, Any] | None = None,
    moved: Collection[str] = (),
) -> tuple[AnyConfig, Change]:
    """Return the settings to put in force: the new ones, except for what needs a restart.

    :param file: the file of the new settings, for the sentences.
    :param fixed: the keys at the top of the file whose values need a restart.
    :param kept: more values that stay in force.
    :param moved: the keys of which `kept` holds the old value.
    :raises ConfigError: if the new values contradict those that stay in force.
    """
    values = {key: getattr(in_force, key) for key in fixed} | dict(kept or {})
    if new.insecure != in_force.insecure:
        values |= {key: getattr(in_force, key) for key in _TRUST}
    needs_restart = [key for key in differences(in_force, new) if key.partition(".")[0] in fixed]
    merged = cast(AnyConfig, msgspec.structs.replace(cast(Any, new), **values))
    raise_if_any(file, list(merged.problems()))
    return merged, Change(differences(in_force, merged), [*needs_restart, *moved])
