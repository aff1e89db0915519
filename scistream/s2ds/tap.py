"""The plugin behind `twistd s2ds`."""

from __future__ import annotations

from typing import Any

from twisted.application.service import Service

from scistream.s2ds.names import use_dns
from scistream.s2ds.service import DataServer
from scistream.s2ds.settings import S2DSConfig
from scistream.s2ds.start import machine_problems
from scistream.twistd import DaemonOptions, make_daemon


class Options(DaemonOptions[S2DSConfig]):
    """Run an S2DS, the data server of a gateway node."""

    config_type = S2DSConfig
    party = "s2ds"
    synopsis = "[options]\n\nRun the data server (S2DS) of a gateway node. The configuration file names its controller."


def makeService(options: Options) -> Service:
    """Return the service, which is not started yet."""

    def make(reactor: Any, problems: Any) -> DataServer:
        use_dns(reactor)
        return DataServer(reactor, options.config, options.file, problems=problems)

    return make_daemon(options, machine_problems(options.config, options.inherited), make)
