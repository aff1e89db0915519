"""The plugin behind `twistd s2ds`."""

from __future__ import annotations

from twisted.application.service import Service

from scistream.config import S2DSConfig
from scistream.daemon import SETUP_PROBLEMS, Daemon, DaemonOptions, daemon_reactor, refuse_to_start
from scistream.s2ds.service import DataServer


class Options(DaemonOptions[S2DSConfig]):
    """Run an S2DS, the data server of a gateway node."""

    config_type = S2DSConfig
    synopsis = "[options]\n\nRuns the data server (S2DS) of a gateway node. Its controller is named in the file."


def makeService(options: Options) -> Service:
    """The service, set up and not started."""
    try:
        return Daemon(DataServer(daemon_reactor(), options.config, options.file), options.file)
    except SETUP_PROBLEMS as problem:
        refuse_to_start(str(problem), options.file)
