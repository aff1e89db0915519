"""The plugin behind `twistd s2cs`."""

from __future__ import annotations

from twisted.application.service import Service

from scistream.config import S2CSConfig
from scistream.daemon import SETUP_PROBLEMS, Daemon, DaemonOptions, daemon_reactor, refuse_to_start
from scistream.s2cs.service import ControlServer


class Options(DaemonOptions[S2CSConfig]):
    """Run an S2CS, the control server of a facility."""

    config_type = S2CSConfig
    synopsis = "[options]\n\nRuns the control server (S2CS) of a facility. Its controller is named in the file."


def makeService(options: Options) -> Service:
    """The service, set up and not started."""
    try:
        return Daemon(ControlServer(daemon_reactor(), options.config, options.file), options.file)
    except SETUP_PROBLEMS as problem:
        refuse_to_start(str(problem), options.file)
