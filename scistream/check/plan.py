"""The input of `scistream check`: a configuration, if there is one, and the traffic that the user expects."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scistream import timing
from scistream.config import BOM, load
from scistream.protocol.address import Address
from scistream.s2cs.settings import S2CSConfig
from scistream.s2ds.settings import S2DSConfig


@dataclass(frozen=True)
class CheckPlan:
    """What to look at.

    :ivar file: the configuration file; None: the machine alone.
    :ivar server: its settings, if it is that of an S2CS.
    :ivar gateway: its settings, if it is that of an S2DS.
    :ivar peer: the address of another host to connect to.
    :ivar rate: the rate that one connection should reach, in Mbit/s.
    :ivar rtt: the round-trip time of the WAN in seconds; from `peer` if it is not given.
    """

    file: Path | None = None
    server: S2CSConfig | None = None
    gateway: S2DSConfig | None = None
    peer: Address | None = None
    rate: float | None = None
    rtt: float | None = None

    @property
    def is_distant(self) -> bool:
        """True if the WAN is known to be long, so that the size of buffers matters."""
        return self.rtt is not None and self.rtt > timing.DISTANT


def settings_of(file: Path) -> S2CSConfig | S2DSConfig:
    """Read the configuration file of an S2CS or of an S2DS. That of an S2CS names gateways.

    :raises ConfigError: if it cannot be read, or has problems: a line for each.
    """
    return load(file, S2CSConfig) if "gateways" in _keys(file) else load(file, S2DSConfig)


def _keys(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_bytes().removeprefix(BOM).decode())
    except (OSError, ValueError, RecursionError):  # `load` says what is wrong
        return {}
