"""The paths of a gateway over the WAN: what its settings and the kernel allow, and what the kernel is told of them.

The kernel opens the further paths of a connection from and to the addresses that it was told. A `PathManager` tells it
those of the settings, for as long as the gateway runs.
"""

from __future__ import annotations

import errno
import socket
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any, Protocol

from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from scistream import timing
from scistream.config import ConfigError
from scistream.s2ds.ports import ONE_PATH, Paths
from scistream.s2ds.relay import mptcp
from scistream.s2ds.settings import MOST_PATHS, WanSettings

_SIGNAL, _SUBFLOW = 1, 2
_FIRST_NUMBER, _NUMBERS = 20, 200
"""The identifiers from which a gateway takes those of its addresses. The kernel gives its own from 1 up, and none any
more once 255 was in use."""


def wan_paths(settings: WanSettings) -> Paths:
    """Return how the connections of the WAN use the paths of this gateway.

    :raises ConfigError: if several paths are demanded, and this system cannot have them.
    """
    if settings.multipath == "no" or (settings.multipath == "auto" and len(settings.paths) < 2):
        return ONE_PATH
    lack = mptcp.lack()
    if lack is None:
        families = {":" in address for address in settings.paths}
        return Paths(multipath=True, others=settings.other_paths, mixed=len(families) > 1)
    if settings.multipath == "yes":
        raise ConfigError(f'wan.multipath: "yes" cannot be had, since {lack}, or write "auto" for one path')
    return ONE_PATH


class Kernel(Protocol):
    """The kernel's path manager, of the network namespace of this process."""

    def endpoints(self) -> dict[str, int]:
        """Return the identifier of each address that it knows."""

    def add(self, address: str, number: int) -> None:
        """Tell it an address of this machine, for connections in both directions.

        :param number: the identifier to give to the address; 0: let the kernel choose.
        :raises OSError: if it refuses: with EBUSY if another address has the identifier.
        """

    def delete(self, address: str, number: int) -> None:
        """Let it forget an address; it ends the paths from and to there.

        :raises OSError: if it refuses.
        """

    def limits(self) -> tuple[int, int]:
        """Return how many addresses of a peer a connection may use, and how many further paths it may have."""

    def set_limits(self, accepted: int, subflows: int) -> None:
        """Set them.

        :raises OSError: if it refuses.
        """


class NetlinkKernel:
    """The kernel's path manager, through netlink."""

    def endpoints(self) -> dict[str, int]:
        """Return the identifier of each address that it knows."""
        with _netlink() as link:
            found = {}
            for message in link.endpoint("show"):
                attributes = _attributes(_attributes(message).get("MPTCP_PM_ATTR_ADDR"))
                address = attributes.get("MPTCP_PM_ADDR_ATTR_ADDR4") or attributes.get("MPTCP_PM_ADDR_ATTR_ADDR6")
                if address is not None:
                    found[str(address)] = int(attributes["MPTCP_PM_ADDR_ATTR_ID"])
            return found

    def add(self, address: str, number: int) -> None:
        """Tell it an address of this machine, for connections in both directions."""
        chosen = {"id": number} if number else {}
        with _netlink() as link, _os_errors():
            link.endpoint("add", **_named(address), **chosen, flags=_SIGNAL | _SUBFLOW)

    def delete(self, address: str, number: int) -> None:
        """Let it forget an address; it ends the paths from and to there."""
        with _netlink() as link, _os_errors():
            link.endpoint("del", **_named(address), id=number)

    def limits(self) -> tuple[int, int]:
        """Return how many addresses of a peer a connection may use, and how many further paths it may have."""
        with _netlink() as link:
            (message, *_) = link.limits("show")
            attributes = _attributes(message)
            return attributes["MPTCP_PM_ATTR_RCV_ADD_ADDRS"], attributes["MPTCP_PM_ATTR_SUBFLOWS"]

    def set_limits(self, accepted: int, subflows: int) -> None:
        """Set them."""
        with _netlink() as link, _os_errors():
            link.limits("set", add_addr_accepted=accepted, subflows=subflows)


@contextmanager
def _os_errors() -> Iterator[None]:
    """Raise an error of netlink as an OSError."""
    try:
        yield
    except Exception as problem:
        code = getattr(problem, "code", None)
        if isinstance(problem, OSError) or not isinstance(code, int):
            raise
        raise OSError(code, str(problem)) from None


def _netlink() -> Any:
    from pyroute2 import MPTCP  # slow to import, and only needed with several paths

    return closing(MPTCP())


def _attributes(message: Any) -> dict[str, Any]:
    return dict(message["attrs"]) if message is not None else {}


def _named(address: str) -> dict[str, Any]:
    return {"addr6": address} if ":" in address else {"addr4": address}


class Claim:
    """The claim of a running gateway to an address that it told the kernel, until `release` or the end of its process.

    It is a socket with an abstract name, which has the life of its process and belongs to its network namespace.

    :raises OSError: if another process has the claim.
    """

    def __init__(self, address: str) -> None:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            self._sock.bind(f"\0scistream-path-{address}")
        except OSError:
            self._sock.close()
            raise

    def release(self) -> None:
        """Give the claim up. Idempotent."""
        self._sock.close()


def own_numbers(address: str) -> tuple[int, int]:
    """Return the identifiers with which gateways tell the kernel an address: the second if the first is in use.

    By them a gateway recognises what an earlier one could not take back, since it was killed.
    """
    first = zlib.crc32(address.encode()) % _NUMBERS
    second = (first + 1 + zlib.crc32(address[::-1].encode()) % (_NUMBERS - 1)) % _NUMBERS
    return _FIRST_NUMBER + first, _FIRST_NUMBER + second


class PathManager:
    """Tells the kernel the addresses of a gateway's paths from `start` until `stop`.

    Without the privilege to do so, it logs which commands the operator has to run. What a gateway that was killed has
    left in the kernel counts as told by this one, or is taken back at once.

    :param reactor: an `IReactorTime`.
    :param addresses: one for each path.
    """

    log = Logger()

    def __init__(self, reactor: Any, addresses: Sequence[str], kernel: Kernel | None = None) -> None:
        self._reactor = reactor
        self._addresses = list(addresses)
        self._kernel = kernel or NetlinkKernel()
        self._ours: dict[str, Claim | None] = {}
        self._limits: tuple[int, int] | None = None
        self._is_allowed = True
        self._here: dict[str, bool] = {}
        self._timer: IDelayedCall | None = None

    def start(self) -> None:
        """Tell the kernel, and watch the addresses from now on."""
        try:
            self._tell()
        except Exception as problem:  # whatever the library raises: the gateway works with one path
            self._is_allowed = False
            self.log.warn(
                "The kernel's path manager cannot be asked ({problem}): streams use one path unless `ip mptcp` "
                "was run for {addresses}",
                problem=str(problem) or type(problem).__name__,
                addresses=", ".join(self._addresses),
            )
        self._here = {address: is_here(address) for address in self._addresses}
        for address, here in self._here.items():
            if not here:
                self.log.warn(
                    "Path {address} of the WAN is away: this machine does not have the address", address=address
                )
        self._timer = self._reactor.callLater(timing.PATHS_CHECK, self._check)

    def stop(self) -> None:
        """Take back what the kernel was told. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        try:
            known = self._kernel.endpoints() if self._ours else {}
            for address in self._ours.keys() & known.keys():
                self._kernel.delete(address, known[address])
            if self._limits is not None and self._kernel.limits() == _enough(self._limits):
                self._kernel.set_limits(*self._limits)
        except Exception as problem:
            self.log.warn("The paths of the WAN stay in the kernel: {problem}", problem=str(problem))
        for claim in self._ours.values():
            if claim is not None:
                claim.release()
        self._ours, self._limits = {}, None

    def _tell(self) -> None:
        known, limits = self._kernel.endpoints(), self._kernel.limits()
        known = self._take_over(known)
        missing = [address for address in self._addresses if address not in known]
        commands = [f"ip mptcp endpoint add {address} signal subflow" for address in missing]
        if limits != _enough(limits):
            accepted, subflows = _enough(limits)
            commands.insert(0, f"ip mptcp limits set add_addr_accepted {accepted} subflows {subflows}")
        try:
            if limits != _enough(limits):
                self._kernel.set_limits(*_enough(limits))
                self._limits = limits
            for address in missing:
                self._add(address)
                self._ours[address] = _claim(address)
        except OSError as problem:
            self._is_allowed = False
            refused = "CAP_NET_ADMIN is missing" if problem.errno in (errno.EPERM, errno.EACCES) else str(problem)
            self.log.warn(
                "This gateway may not tell the kernel its paths ({refused}): run {commands}, or give the service "
                "CAP_NET_ADMIN; until then streams may use one path only",
                refused=refused,
                commands="; ".join(f"`{command}`" for command in commands),
            )

    def _take_over(self, known: dict[str, int]) -> dict[str, int]:
        """Take over the addresses that a gateway which was killed has left in the kernel.

        Those that are no paths of this one are taken back.

        :return: the addresses that the kernel knows afterwards.
        """
        left = {}
        for address, number in known.items():
            claim = _claim(address) if number in own_numbers(address) else None
            if claim is None:  # the operator's, or that of a gateway that runs
                left[address] = number
            elif address in self._addresses:
                self._ours[address] = claim
                left[address] = number
                self.log.info("Path {address} was left in the kernel by a gateway that was killed", address=address)
            else:
                claim.release()
                try:
                    self._kernel.delete(address, number)
                except OSError as problem:
                    self.log.warn(
                        "{address} stays in the kernel, where a gateway that was killed has left it: {problem}",
                        address=address,
                        problem=str(problem),
                    )
                    left[address] = number
                else:
                    self.log.info(
                        "{address}, which a gateway that was killed has left in the kernel, is taken back",
                        address=address,
                    )
        return left

    def _add(self, address: str) -> None:
        """Tell the kernel an address.

        :raises OSError: if it refuses.
        """
        for number in own_numbers(address):
            try:
                self._kernel.add(address, number)
            except OSError as problem:
                if problem.errno != errno.EBUSY:
                    raise
            else:
                return
        self._kernel.add(address, 0)

    def _check(self) -> None:
        self._timer = self._reactor.callLater(timing.PATHS_CHECK, self._check)
        for address, was_here in self._here.items():
            here = is_here(address)
            if here == was_here:
                continue
            self._here[address] = here
            if here:
                self.log.info("Path {address} of the WAN is back", address=address)
                self._reopen(address)
            else:
                self.log.warn("Path {address} of the WAN is away: this machine lost the address", address=address)

    def _reopen(self, address: str) -> None:
        """Let all connections use a path again: the kernel does not do so by itself."""
        if not self._is_allowed:
            return
        try:
            known = self._kernel.endpoints()
            if address in known:
                self._kernel.delete(address, known[address])
            self._add(address)
        except Exception as problem:
            self.log.warn(
                "Open connections cannot use path {address} again: {problem}", address=address, problem=str(problem)
            )


def _claim(address: str) -> Claim | None:
    """Return the claim to an address; None if another gateway has it."""
    try:
        return Claim(address)
    except OSError:
        return None


def _enough(limits: tuple[int, int]) -> tuple[int, int]:
    return max(limits[0], MOST_PATHS), max(limits[1], MOST_PATHS)


def is_here(address: str) -> bool:
    """Return True if this machine has an address now."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.bind((address, 0))
    except OSError as problem:
        return problem.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
    return True
