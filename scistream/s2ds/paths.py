"""The paths of a gateway over the WAN: what its settings and the kernel allow."""

from __future__ import annotations

from scistream.config import ConfigError
from scistream.s2ds.ports import ONE_PATH, Paths
from scistream.s2ds.relay import mptcp
from scistream.s2ds.settings import WanSettings


def wan_paths(settings: WanSettings) -> Paths:
    """Return how the connections of the WAN use the paths of this gateway.

    :raises ConfigError: if several paths are demanded, and this system cannot have them.
    """
    if settings.multipath == "no" or (settings.multipath == "auto" and len(settings.paths) < 2):
        return ONE_PATH
    lack = mptcp.lack()
    if lack is None:
        return Paths(multipath=True, others=settings.other_paths)
    if settings.multipath == "yes":
        raise ConfigError(f'wan.multipath: "yes" cannot be had, since {lack}, or write "auto" for one path')
    return ONE_PATH
