"""Run a program as a unit's settings would have systemd run it, where systemd does not run: for tests, as root.

A `Sandbox` reads the settings; this file, run as a script, applies them to itself and becomes the program, which keeps
its process id. Mounts, capabilities, limits and system calls are those of the unit. Control groups are not used.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

_NOT_OF_A_SANDBOX = {
    *("Type", "ExecStart", "ExecReload", "Restart", "RestartPreventExitStatus", "WorkingDirectory", "User"),
    *("WatchdogSec", "NotifyAccess", "TimeoutStopSec", "TimeoutStartSec", "SyslogIdentifier", "RestartSec"),
    *("TasksMax", "MemoryHigh", "MemoryMax", "OOMPolicy", "LogsDirectoryMode", "StateDirectoryMode"),
    *("RemoveIPC", "ProtectControlGroups", "ProtectProc", "KillMode"),
}
"""Settings that a program does not notice, or that need control groups or systemd itself."""
_BLOCKED = {
    "ProtectClock": "@clock",
    "ProtectKernelModules": "@module",
    "ProtectKernelLogs": "syslog",
    "ProtectHostname": "sethostname setdomainname",
    "PrivateDevices": "@raw-io",
    "LockPersonality": "personality",
}
"""The system calls that systemd refuses for a setting."""
_NOTICED = {
    *("NoNewPrivileges", "CapabilityBoundingSet", "AmbientCapabilities", "SystemCallArchitectures", "SystemCallFilter"),
    *("SystemCallErrorNumber", "ProtectSystem", "ProtectHome", "ProtectKernelTunables", "RestrictNamespaces"),
    *("RestrictRealtime", "RestrictSUIDSGID", "UMask", "PrivateTmp", "RestrictAddressFamilies", "StateDirectory"),
    *("LogsDirectory", "LimitCORE", "LimitNOFILE", "MemoryDenyWriteExecute", *_BLOCKED),
}
"""Settings that `Sandbox` applies."""


class Sandbox:
    """The sandbox of a unit.

    :param readable: files and folders that the program needs from places that the unit hides, such as its Python.
    :param writable: the folders in the place of the unit's own, such as its StateDirectory.
    :param user: the number of the user, and of the group.
    """

    def __init__(self, unit: Path, readable: Sequence[Path], writable: Sequence[Path], user: int) -> None:
        self.settings = read_service(unit)
        unknown = self.settings.keys() - _NOTICED - _NOT_OF_A_SANDBOX
        assert not unknown, f"add {unknown} to this sandbox"
        assert self.settings["CapabilityBoundingSet"] == [""], "this sandbox gives no capabilities"
        self._orders = {
            "settings": self.settings,
            "allowed": sorted(_allowed(self.settings["SystemCallFilter"])),
            "blocked": sorted(_blocked(self.settings)),
            "readable": [str(path) for path in readable],
            "writable": [str(path) for path in writable],
            "user": user,
        }

    def command(self, command: Sequence[str]) -> list[str]:
        """Return the command that runs another one in this sandbox."""
        return [sys.executable, "-I", "-S", __file__, json.dumps(self._orders), *command]


def read_service(unit: Path) -> dict[str, list[str]]:
    """Return the values of each key in the section [Service] of a unit."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in unit.read_text().splitlines():
        if line.startswith("["):
            section = line
        elif section == "[Service]" and line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


@lru_cache
def _calls(name: str) -> frozenset[str]:
    """Return the system calls of a set that systemd defines, or the name itself if it is no set."""
    if not name.startswith("@"):
        return frozenset({name})
    listed = subprocess.run(
        ["systemd-analyze", "syscall-filter", name], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    words = [line.strip() for line in listed.splitlines()[1:]]
    return frozenset(call for word in words if word and word[0] != "#" for call in _calls(word))


def _allowed(filters: Sequence[str]) -> Iterator[str]:
    """Yield the system calls that the values of SystemCallFilter allow; the first value has to be a list of these."""
    allowed: set[str] = set(_calls("@default"))
    assert not filters[0].startswith("~")
    for value in filters:
        calls = {call for word in value.removeprefix("~").split() for call in _calls(word)}
        allowed = allowed - calls if value.startswith("~") else allowed | calls
    yield from allowed


def _blocked(settings: dict[str, list[str]]) -> Iterator[str]:
    for key, words in _BLOCKED.items():
        if settings.get(key) == ["yes"]:
            yield from (call for word in words.split() for call in _calls(word))


# In the program

_libc = ctypes.CDLL(None, use_errno=True)
_NEWNS, _PRIVATE, _REC, _BIND = 0x20000, 1 << 18, 0x4000, 0x1000
_NOSUID, _NODEV, _AT_RECURSIVE, _RDONLY = 2, 4, 0x8000, 1
_SYS_MOUNT_SETATTR = 442
_AT_FDCWD = -100
_CAPBSET_DROP, _NO_NEW_PRIVS = 24, 38
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")


def _check(result: int, what: str) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def _mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    arguments = [word.encode() if word is not None else None for word in (source, target, kind)]
    _check(_libc.mount(*arguments, ctypes.c_ulong(flags), data.encode() if data else None), f"mount {target}")


def _read_only(target: str, *, on: bool, recursive: bool = False) -> None:
    attributes = (ctypes.c_uint64 * 4)(_RDONLY if on else 0, 0 if on else _RDONLY, 0, 0)
    flags = _AT_RECURSIVE if recursive else 0
    size = ctypes.sizeof(attributes)
    result = _libc.syscall(_SYS_MOUNT_SETATTR, _AT_FDCWD, target.encode(), flags, ctypes.byref(attributes), size)
    _check(result, f"mount_setattr {target}")


def _bind(descriptor: int, target: str) -> None:
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        os.makedirs(target, exist_ok=True)
    elif not os.path.exists(target):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        open(target, "x").close()
    _mount(f"/proc/self/fd/{descriptor}", target, None, _BIND | _REC)


def _mounts(orders: dict[str, Any]) -> None:
    settings = orders["settings"]
    is_on = {key: values[-1] in ("yes", "strict") for key, values in settings.items()}
    _check(_libc.unshare(_NEWNS), "unshare")
    _mount("none", "/", None, _REC | _PRIVATE)
    kept = {path: os.open(path, os.O_PATH) for path in (*orders["readable"], *orders["writable"])}
    devices = {name: os.open(f"/dev/{name}", os.O_PATH) for name in _DEVICES if os.path.exists(f"/dev/{name}")}
    free = ["/proc"]
    if is_on["PrivateTmp"]:
        for path in ("/tmp", "/var/tmp"):
            _mount("tmpfs", path, "tmpfs", _NOSUID | _NODEV, "mode=1777")
            free.append(path)
    if is_on["ProtectHome"]:
        for path in filter(os.path.isdir, ("/home", "/root", "/run/user")):
            _mount("tmpfs", path, "tmpfs", _NOSUID | _NODEV, "mode=0755")
    if is_on["PrivateDevices"]:
        _mount("tmpfs", "/dev", "tmpfs", _NOSUID, "mode=0755")
        for name, descriptor in devices.items():
            _bind(descriptor, f"/dev/{name}")
        os.mkdir("/dev/shm")
        _mount("tmpfs", "/dev/shm", "tmpfs", _NOSUID | _NODEV, "mode=1777")
        os.symlink("/proc/self/fd", "/dev/fd")
        free.append("/dev/shm")
    for path, descriptor in kept.items():
        _bind(descriptor, path)
        os.close(descriptor)
    if is_on["ProtectKernelTunables"]:
        _mount("/proc/sys", "/proc/sys", None, _BIND)
    if is_on["ProtectSystem"]:
        _read_only("/", on=True, recursive=True)
        for path in (*free, *orders["writable"]):
            _read_only(path, on=False)


def _limits(settings: dict[str, list[str]]) -> None:
    for key, number in (("LimitCORE", resource.RLIMIT_CORE), ("LimitNOFILE", resource.RLIMIT_NOFILE)):
        value = min(int(settings[key][-1]), resource.getrlimit(number)[1])  # in a container, root may not raise it
        resource.setrlimit(number, (value, value))
    os.umask(int(settings["UMask"][-1], 8))


def _give_up_privileges(user: int) -> None:
    for capability in range(int(Path("/proc/sys/kernel/cap_last_cap").read_text()) + 1):
        _check(_libc.prctl(_CAPBSET_DROP, capability, 0, 0, 0), "prctl")
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    _check(_libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")


class _Comparison(ctypes.Structure):
    _fields_ = (("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64))


_ALLOW, _ERRNO, _EQUAL, _GREATER, _MASKED = 0x7FFF0000, 0x00050000, 4, 6, 7
_NAMESPACES = 0x7E020080
_EXEC, _WRITE, _SHM_EXEC = 4, 2, 0o100000


class _Filter:
    """A filter of system calls, by libseccomp."""

    def __init__(self, default: int) -> None:
        self._library = ctypes.CDLL("libseccomp.so.2")
        self._library.seccomp_init.restype = ctypes.c_void_p
        self._context = ctypes.c_void_p(self._library.seccomp_init(ctypes.c_uint32(default)))

    def add(self, action: int, call: str, *comparisons: tuple[int, int, int, int]) -> None:
        """Add an action for a system call whose arguments compare as given: argument, operator, and two values."""
        number = self._library.seccomp_syscall_resolve_name(call.encode())
        if number == -1:
            return  # this kernel's architecture has no such call
        array = (_Comparison * len(comparisons))(*comparisons)
        result = self._library.seccomp_rule_add_array(self._context, ctypes.c_uint32(action), number, len(array), array)
        assert result == 0, (call, os.strerror(-result))

    def load(self) -> None:
        result = self._library.seccomp_load(self._context)
        assert result == 0, os.strerror(-result)


def _filters(orders: dict[str, Any]) -> tuple[_Filter, _Filter]:
    settings = orders["settings"]
    refused = _ERRNO | errno.EPERM
    some = _Filter(_ALLOW)
    for call in orders["blocked"]:
        some.add(refused, call)
    if "RestrictAddressFamilies" in settings:
        import socket

        names = " ".join(settings["RestrictAddressFamilies"]).split()
        families = {int(getattr(socket, name)) for name in names}
        for family in {*range(64)} - families:
            some.add(_ERRNO | errno.EAFNOSUPPORT, "socket", (0, _EQUAL, family, 0))
        some.add(_ERRNO | errno.EAFNOSUPPORT, "socket", (0, _GREATER, 63, 0))
    if settings["RestrictNamespaces"] == ["yes"]:
        some.add(refused, "unshare")
        some.add(refused, "setns")
        some.add(_ERRNO | errno.ENOSYS, "clone3")
        for bit in range(64):
            if _NAMESPACES >> bit & 1:
                some.add(refused, "clone", (0, _MASKED, 1 << bit, 1 << bit))
    if settings["RestrictRealtime"] == ["yes"]:
        for policy in (1, 2, 6):
            some.add(refused, "sched_setscheduler", (1, _EQUAL, policy, 0))
    if settings["RestrictSUIDSGID"] == ["yes"]:
        for bit in (stat.S_ISUID, stat.S_ISGID):
            for call, argument in (("chmod", 1), ("fchmod", 1), ("fchmodat", 2)):
                some.add(refused, call, (argument, _MASKED, bit, bit))
    if settings.get("MemoryDenyWriteExecute") == ["yes"]:
        some.add(refused, "mmap", (2, _MASKED, _EXEC | _WRITE, _EXEC | _WRITE))
        for call in ("mprotect", "pkey_mprotect"):
            some.add(refused, call, (2, _MASKED, _EXEC, _EXEC))
        some.add(refused, "shmat", (2, _MASKED, _SHM_EXEC, _SHM_EXEC))
    only = _Filter(refused)
    for call in orders["allowed"]:
        only.add(_ALLOW, call)
    return some, only


def _main() -> NoReturn:
    orders = json.loads(sys.argv[1])
    folder = os.getcwd()
    _mounts(orders)
    os.chdir(folder)
    _limits(orders["settings"])
    some, only = _filters(orders)
    _give_up_privileges(orders["user"])
    some.load()
    only.load()
    os.execv(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    _main()
