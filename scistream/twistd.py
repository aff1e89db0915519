"""The common part of `twistd s2cs` and `twistd s2ds`: options, start, reload and end of a daemon."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Generic, NoReturn, Protocol, cast

from twisted.application.service import MultiService, Service
from twisted.internet.defer import Deferred
from twisted.logger import ILogObserver, LogEvent, Logger, LogLevel, formatEvent, globalLogPublisher
from twisted.python import usage
from twisted.python.components import Componentized
from twisted.python.logfile import LogFile
from twisted.python.syslog import SyslogObserver
from zope.interface import implementer

from scistream import logs
from scistream.config import AnySettings, ConfigError, Section, SettingProblem, load, raise_if_any, to_toml
from scistream.log_output import Destination, HasLogSettings, LogOutput
from scistream.os_process import keep_secrets, raise_descriptor_limit
from scistream.reactors import listen_patiently, run_on_monotonic_time
from scistream.reloading import Change
from scistream.setup_problems import SETUP_PROBLEMS, SetupProblems
from scistream.standard_streams import fill_descriptors
from scistream.systemd.notify import Heartbeat, ServiceManager
from scistream.systemd.sockets import InheritedSockets, first_environment


class DaemonOptions(usage.Options, Generic[AnySettings]):
    """The options of a daemon.

    :cvar config_type: the type of its settings.
    :cvar party: the name of its party.
    :cvar fixed: the keys of the settings that only a restart changes.
    """

    config_type: type[AnySettings]
    fixed: Collection[str]
    config: AnySettings
    party: str
    file: Path
    inherited: InheritedSockets
    optParameters = (("config", "c", None, "the configuration file (TOML); required"),)
    optFlags: ClassVar[Sequence[tuple[str, str | None, str]]] = (
        ("check-config", None, "Check the configuration and every file that it names, print each problem, and exit."),
        ("print-config", None, "Print the settings with their defaults as TOML, and exit."),
    )

    def postOptions(self) -> None:
        """Read the configuration file, and take the sockets that systemd has opened."""
        fill_descriptors()  # before the reactor opens any file, so that none gets the numbers of standard streams
        try:
            self.inherited = InheritedSockets.from_environment(first_environment())
        except ValueError as problem:
            refuse_to_start(str(problem))
        keep_secrets()
        if self["config"] is None:
            refuse_to_start(
                "no configuration: name a file with --config FILE; `scistream examples DIR` writes examples"
            )
        self.file = Path(self["config"])
        try:
            self.config = load(self.file, self.config_type)
        except ConfigError as problem:
            refuse_to_start(str(problem))
        listen = str(cast(Any, self.config).listen)
        others = self.inherited.others([listen, cast(Any, self.config).http.listen])
        if others:
            addresses = ", ".join(map(str, others))
            refuse_to_start(
                f"listen: {listen!r}, but systemd has opened a socket at {addresses}: make `listen` and "
                "ListenStream= in the socket unit the same",
                self.file,
            )
        if self["print-config"]:
            sys.stdout.write(to_toml(self.config))
        if self["check-config"]:
            self._check()
        if self["print-config"] or self["check-config"]:
            sys.stdout.flush()
            raise SystemExit(0)

    def find_problems(self, reactor: Any) -> SetupProblems:
        """Return everything that would keep the daemon from starting. Open no port, and write nothing."""
        raise NotImplementedError

    def _check(self) -> None:
        """Print the problems and warnings of the configuration; exit with status 2 if there is a problem."""
        from twisted.internet import reactor

        with _warnings_told():
            problems = self.find_problems(reactor).lines
        if problems:
            refuse_to_start("\n".join(problems), self.file)
        sys.stdout.write(
            f"{self.file}: no problem found. A reload (SIGHUP) applies every setting except these, which take a "
            f"restart: {', '.join(self.fixed)}\n"
        )


@contextmanager
def _warnings_told() -> Iterator[None]:
    """Print the warnings that the block logs on standard error."""

    @implementer(ILogObserver)
    def tell(event: LogEvent) -> None:
        if event["log_level"] >= LogLevel.warn:
            sys.stderr.write(f"warning: {formatEvent(event)}\n")

    globalLogPublisher.addObserver(tell)
    try:
        yield
    finally:
        globalLogPublisher.removeObserver(tell)


def refuse_to_start(why: str, file: Path | None = None) -> NoReturn:
    """Exit with status 2 and the reasons on standard error, even if twistd has redirected it to its log.

    :param why: a line for each reason.
    :param file: the configuration file, with which each line then begins.
    """
    if file is not None:
        why = "\n".join(line if line.startswith(f"{file}: ") else f"{file}: {line}" for line in why.splitlines())
    streams = {sys.stderr} if logs.covers_errors else {sys.stderr, sys.__stderr__ or sys.stderr}
    for stream in streams:
        stream.write(f"{why}\n")
    raise SystemExit(2)


def end_daemon(reactor: Any, why: str) -> None:
    """Stop a running daemon that cannot continue: a sentence on standard error, and exit status 2."""
    Logger("scistream.twistd").critical("the daemon cannot continue: {why}", why=why)
    if not logs.covers_errors and sys.__stderr__ is not None:
        sys.__stderr__.write(f"{why}\n")
    reactor.addSystemEventTrigger("after", "shutdown", os._exit, 2)  # twistd would end with 0
    reactor.stop()


def make_daemon(
    options: DaemonOptions[Any], found: Iterable[SettingProblem], make: Callable[[Any, SetupProblems], Service]
) -> Service:
    """Set up a daemon without starting it, or report all problems and exit.

    :param found: problems with the settings on this machine.
    :param make: makes the party's service for a reactor; it also raises the problems found before.
    """
    problems = SetupProblems()
    with problems.of_step():
        raise_if_any(options.file, list(found))
    output = None
    with problems.of_step():
        output = _log_output(options)
    try:
        service = make(daemon_reactor(options.inherited), problems)
        assert output is not None
        return Daemon(service, options.file, options.config_type, ServiceManager(os.environ), output)
    except SETUP_PROBLEMS as problem:
        refuse_to_start(str(problem), options.file)


def _log_output(options: DaemonOptions[Any]) -> LogOutput:
    """Return the log as the settings and the options of twistd want it.

    :raises ConfigError: if both contradict each other.
    """
    of_twistd: Mapping[str, Any] = options.parent or {}
    name = of_twistd.get("logfile") or ""
    destination: Callable[[], Destination] | None = None
    syslog = None
    if of_twistd.get("syslog"):
        syslog = SyslogObserver(of_twistd.get("prefix") or "twisted").emit
    elif name != "-" and (name or not of_twistd.get("nodaemon", True)):
        destination = partial(LogFile.fromFullPath, name or "twistd.log")
    return LogOutput(options.party, options.config, destination, syslog)


def daemon_reactor(inherited: InheritedSockets) -> Any:
    """Return the reactor that twistd runs, with monotonic timers, and ports that pause when descriptors run out.

    :param inherited: sockets on which it listens instead of opening its own.
    """
    from twisted.internet import reactor

    run_on_monotonic_time(reactor)
    listen_patiently(reactor, inherited)
    return reactor


class Reloadable(Protocol):
    """The service that a daemon runs."""

    def reload(self, config: Any) -> Change:
        """Apply new settings, and read the files that they name again.

        If anything is wrong, nothing changes, and one of `SETUP_PROBLEMS` is raised.
        """

    def shut_down(self) -> Deferred[None]:
        """Prepare the end of the daemon; fire when it may end, which may take as long as `shutdown_grace`."""

    def when_ready(self) -> Deferred[None]:
        """Return a Deferred that fires when the service, which has been started, can do its work."""

    def status_line(self) -> str:
        """Return what it does at the moment, in one line."""


class Daemon(MultiService):
    """Runs a party's service under twistd; a problem that keeps it from starting is reported in one line.

    On SIGHUP the configuration file is read again, and the service applies it. The service manager is notified of the
    daemon's state.

    :param file: the configuration file.
    :param config_type: the type of its settings.
    :param manager: the service manager.
    :param output: its log.
    """

    log = Logger()

    def __init__(
        self, service: Service, file: Path, config_type: type[Section], manager: ServiceManager, output: LogOutput
    ) -> None:
        super().__init__()
        self._output = output
        self._manager = manager
        self._heartbeat: Heartbeat | None = None
        self._is_ready = self._is_stopping = self._reload_refused = False
        self._file = file
        self._absolute = file.absolute()  # twistd may change its working directory later
        self._config_type = config_type
        self._reloadable: Reloadable = cast(Reloadable, service)
        self.addService(service)

    def setServiceParent(self, parent: Any) -> None:  # noqa: N802, since Twisted calls it so
        """Become the service of an application, and give it the log in place of twistd's own."""
        if isinstance(parent, Componentized):
            parent.setComponent(ILogObserver, self._output.begin())
        super().setServiceParent(parent)

    def startService(self) -> None:
        """Start the service, or report why it cannot start and exit."""
        from twisted.internet import reactor

        keep_secrets()  # again, since twistd may have changed its user meanwhile, which undoes it
        raise_descriptor_limit()
        if os.geteuid() == 0:
            self.log.warn(
                "this daemon runs as root, which is not needed: run it as the user `scistream`, as the units do that "
                "`scistream examples DIR` writes (scistream.sysusers creates that user)"
            )
        _stop_at_signals(reactor, self._shut_down)
        for number, change in ((signal.SIGUSR1, self._output.more), (signal.SIGUSR2, self._output.less)):
            signal.signal(number, partial(_call_in_reactor, reactor, change))
        signal.signal(signal.SIGHUP, lambda *_: cast(Any, reactor).callFromThread(self._reload))
        try:
            super().startService()
        except SETUP_PROBLEMS as problem:
            refuse_to_start(str(problem), self._file)
        if self._manager.watchdog:
            faulthandler.enable(2)  # standard error; the watchdog's signal then shows where the reactor was stuck
        self._heartbeat = Heartbeat(reactor, self._manager, self._status)
        self._heartbeat.start()
        self._reloadable.when_ready().addCallback(self._ready)

    def stopService(self) -> Any:
        """Stop the service, and tell the service manager so. The signs of life go on until the process ends."""
        self._tell_stopping()
        return super().stopService()

    def _shut_down(self) -> Deferred[None]:
        """Let the service prepare its end, for which the service manager waits as long as there are signs of life."""
        self._tell_stopping()
        if self._heartbeat is not None:
            self._heartbeat.ask_for_time()
        return self._reloadable.shut_down()

    def _tell_stopping(self) -> None:
        if not self._is_stopping:
            self._is_ready, self._is_stopping = False, True
            self._manager.stopping(self._status())

    def _status(self) -> str:
        line = self._reloadable.status_line()
        if self._reload_refused:
            line = f"the last reload was refused, see the log; {line}"
        return f"stopping; {line}" if self._is_stopping else line

    def _ready(self, _: object) -> None:
        if self.running and not self._is_stopping:
            self._is_ready = True
            self._manager.ready(self._status())

    def _reload(self) -> None:
        if not self.running:
            return
        if self._is_ready:
            self._manager.reloading()
        self._apply_file()
        if self._is_ready:
            self._manager.ready(self._status())

    def _apply_file(self) -> None:
        try:
            config = load(self._absolute, self._config_type)
            apply = self._output.prepare(cast(HasLogSettings, config))
            change = self._reloadable.reload(config)
        except SETUP_PROBLEMS as problem:
            for line in str(problem).splitlines():
                self.log.error("NOT reloaded, the previous settings stay in force: {problem}", problem=line)
            self._reload_refused = True
            return
        self._reload_refused = False
        apply()
        self._output.reopen()
        if change.needs_restart:
            self.log.warn(
                "a restart is needed to change these settings: {keys}",
                keys=", ".join(change.needs_restart),
            )
        self.log.info(
            "reloaded {file} and the files that it names; settings that changed: {keys}",
            file=self._file,
            keys=", ".join(change.changed) or "none",
        )


def _call_in_reactor(reactor: Any, function: Callable[[], None], _number: int, _frame: Any) -> None:
    """Handle a signal by calling a function when the reactor has its next turn."""
    reactor.callFromThread(function)


def _stop_at_signals(reactor: Any, shut_down: Callable[[], Deferred[None]]) -> None:
    """Stop on SIGTERM and SIGINT with exit status 0, where twistd would end by the signal.

    SIGTERM stops the daemon when the service allows it. A second signal, or SIGINT, stops it at once, and a second
    Ctrl-C ends the process without cleaning up.

    :param shut_down: as in `Reloadable`.
    """
    is_stopping = False

    def stop_now() -> None:
        nonlocal is_stopping
        if not is_stopping:
            is_stopping = True
            reactor.stop()

    def begin() -> None:
        try:
            shut_down().addBoth(lambda _: stop_now())
        except Exception:
            Logger("scistream.twistd").failure("the daemon stops at once")
            stop_now()

    asked: list[int] = []

    def stop(number: int, _frame: Any) -> None:
        asked.append(number)
        if number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
        reactor.callFromThread(begin if asked == [signal.SIGTERM] else stop_now)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    reactor.sigTerm = stop  # the reactor replaces the handler of SIGTERM with this attribute when it starts to run
