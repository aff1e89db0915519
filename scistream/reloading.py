"""Apply a configuration that was read again while a daemon runs: which settings change, and which cannot.

Some settings are fixed when the process starts, such as the address on which it listens. They keep their value, and
are reported, so that the operator knows that a restart is needed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar, cast

import msgspec

from scistream.config import SettingProblem, raise_if_any


class _OfDaemon(Protocol):
    """The common part of the daemons' configurations."""

    @property
    def insecure(self) -> bool:
        """True if links are plain TCP."""

    def problems(self) -> Iterator[SettingProblem]:
        """Yield the problems with the values."""


AnyConfig = TypeVar("AnyConfig", bound=_OfDaemon)

_TRUST = ("certificate", "key", "authorities", "crl", "controller")
"""The settings that `insecure` forbids if it is true and requires if it is false."""


class Change(NamedTuple):
    """The difference between the current settings and those of a file.

    :ivar changed: the keys whose value changes, such as ``limits.links``.
    :ivar needs_restart: the keys whose new value takes effect only after a restart.
    """

    changed: list[str]
    needs_restart: list[str]


def differences(old: Any, new: Any) -> list[str]:
    """Return the keys whose values differ in two structs of the same type; for a section in both, its keys."""
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
    """Return the settings to apply: the new ones, except for those that need a restart.

    :param file: the file of the new settings, for messages.
    :param fixed: the keys whose values need a restart: of settings, sections, or settings in a section (``wan.paths``).
    :param kept: further values to keep.
    :param moved: the keys of the values in `kept`.
    :raises ConfigError: if the new values contradict those that are kept.
    """
    values = {key: getattr(in_force, key) for key in fixed if "." not in key} | dict(kept or {})
    if new.insecure != in_force.insecure:
        values |= {key: getattr(in_force, key) for key in _TRUST}
    for section, _, key in (key.partition(".") for key in fixed if "." in key):
        kept_value = {key: getattr(getattr(in_force, section), key)}
        values[section] = msgspec.structs.replace(values.get(section, getattr(new, section)), **kept_value)
    needs_restart = [key for key in differences(in_force, new) if key in fixed or key.partition(".")[0] in fixed]
    merged = cast(AnyConfig, msgspec.structs.replace(cast(Any, new), **values))
    raise_if_any(file, list(merged.problems()))
    return merged, Change(differences(in_force, merged), [*needs_restart, *moved])
