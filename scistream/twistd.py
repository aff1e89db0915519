"""What `twistd s2cs` and `twistd s2ds` share: the option --config, and errors of set-up as one line."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Generic, NoReturn, Protocol, cast

from twisted.application.service import MultiService, Service
from twisted.logger import Logger
from twisted.python import usage

from scistream.config import AnySettings, ConfigError, Section, SettingProblem, load, raise_if_any
from scistream.os_process import keep_secrets, raise_descriptor_limit
from scistream.reactors import listen_patiently, run_on_monotonic_time
from scistream.reloading import Change
from scistream.setup_problems import SETUP_PROBLEMS, SetupProblems
from scistream.standard_streams import fill_descriptors


class DaemonOptions(usage.Options, Generic[AnySettings]):
    """The options of a daemon; `config_type` is set by each."""

    config_type: type[AnySettings]
    config: AnySettings
    file: Path
    optParameters = (("config", "c", None, "the configuration file (TOML); needed"),)

    def postOptions(self) -> None:
        """Read the file."""
        fill_descriptors()  # before the reactor opens anything: the standard error of elements goes there
        keep_secrets()
        if self["config"] is None:
            refuse_to_start("which configuration? Say --config FILE; conf/ has commented examples")
        self.file = Path(self["config"])
        try:
            self.config = load(self.file, self.config_type)
        except ConfigError as problem:
            refuse_to_start(str(problem))


def refuse_to_start(why: str, file: Path | None = None) -> NoReturn:
    """End with the reasons on standard error, also where twistd has put its log in that place, and exit status 2.

    :param why: a line for each reason.
    :param file: the configuration, which each line is to name.
    """
    if file is not None:
        why = "\n".join(line if line.startswith(f"{file}: ") else f"{file}: {line}" for line in why.splitlines())
    _tell(why)
    raise SystemExit(2)


def _tell(why: str) -> None:
    for stream in {sys.stderr, sys.__stderr__ or sys.stderr}:
        stream.write(f"{why}\n")


def end_daemon(reactor: Any, why: str) -> None:
    """Stop a daemon that runs and cannot go on: a sentence on standard error, exit status 2 in the end."""
    Logger("scistream.twistd").critical("it cannot go on: {why}", why=why)
    _tell(why)
    reactor.addSystemEventTrigger("after", "shutdown", os._exit, 2)  # twistd would end with 0
    reactor.stop()


def make_daemon(
    options: DaemonOptions[Any], found: Iterable[SettingProblem], make: Callable[[Any, SetupProblems], Service]
) -> Service:
    """A daemon, set up and not started; or this process ends, and all that is wrong is told.

    :param found: what is wrong with the settings on this machine.
    :param make: makes the party's service for a reactor; it raises what has been found before, too.
    """
    problems = SetupProblems()
    with problems.of_step():
        raise_if_any(options.file, list(found))
    try:
        return Daemon(make(daemon_reactor(), problems), options.file, options.config_type)
    except SETUP_PROBLEMS as problem:
        refuse_to_start(str(problem), options.file)


def daemon_reactor() -> Any:
    """The reactor that twistd runs, with timers that the wall clock cannot disturb and ports that wait for room."""
    from twisted.internet import reactor

    run_on_monotonic_time(reactor)
    listen_patiently(reactor)
    return reactor


class Reloadable(Protocol):
    """What a daemon runs."""

    def reload(self, config: Any) -> Change:
        """Put new settings in force and read again the files that they name; raise one of `SETUP_PROBLEMS` with
        nothing changed if any of it is bad."""


class Daemon(MultiService):
    """Runs a party's service under twistd; what keeps it from starting is told in one line.

    At SIGHUP the configuration file is read again, and the service puts it in force.

    :param file: the configuration file.
    :param config_type: what `file` holds.
    """

    log = Logger()

    def __init__(self, service: Service, file: Path, config_type: type[Section]) -> None:
        super().__init__()
        self._file = file
        self._absolute = file.absolute()  # twistd may change its working directory later
        self._config_type = config_type
        self._reloadable: Reloadable = cast(Reloadable, service)
        self.addService(service)

    def startService(self) -> None:
        from twisted.internet import reactor

        keep_secrets()  # again, since twistd may have become another user meanwhile, which undoes it
        raise_descriptor_limit()
        if os.geteuid() == 0:
            self.log.warn(
                "this daemon runs as root, which it has no need of: run it as the user `scistream`, as the units in "
                "conf/systemd do (scistream.sysusers makes that user)"
            )
        _stop_at_signals(reactor)
        signal.signal(signal.SIGHUP, lambda *_: cast(Any, reactor).callFromThread(self._reload))
        reactor.callWhenRunning(_stop_at_signals, reactor)  # again, since the reactor sets its own when it starts
        try:
            super().startService()
        except SETUP_PROBLEMS as problem:
            refuse_to_start(str(problem), self._file)

    def _reload(self) -> None:
        if not self.running:
            return
        try:
            change = self._reloadable.reload(load(self._absolute, self._config_type))
        except SETUP_PROBLEMS as problem:
            for line in str(problem).splitlines():
                self.log.error("NOT reloaded, what was in force before stays: {problem}", problem=line)
            return
        if change.needs_restart:
            self.log.warn(
                "a restart is needed for these settings, which keep the value that they had at the start: {keys}",
                keys=", ".join(change.needs_restart),
            )
        self.log.info(
            "reloaded what {file} names; settings that changed: {keys}",
            file=self._file,
            keys=", ".join(change.changed) or "none",
        )


def _stop_at_signals(reactor: Any) -> None:
    """Let an orderly end have exit status 0, where twistd would end by the signal; a second Ctrl-C ends at once."""

    def stop(number: int, _frame: Any) -> None:
        signal.signal(number, signal.SIG_DFL if number == signal.SIGINT else signal.SIG_IGN)
        reactor.callFromThread(reactor.stop)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
