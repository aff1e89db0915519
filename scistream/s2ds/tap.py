"""The plugin behind `twistd s2ds`."""

from __future__ import annotations

from typing import Any

from twisted.application.service import Service

from scistream.s2ds.dry_run import check
from scistream.s2ds.names import use_dns
from scistream.s2ds.service import NEEDS_RESTART, DataServer
from scistream.s2ds.settings import S2DSConfig
from scistream.s2ds.start import machine_problems
from scistream.setup_problems import SetupProblems
from scistream.twistd import DaemonOptions, make_daemon


class Options(DaemonOptions[S2DSConfig]):
    """Run an S2DS, the data server of a gateway node."""

    config_type = S2DSConfig
    party = "s2ds"
    fixed = NEEDS_RESTART
    synopsis = "[options]\n\nRun the data server (S2DS) of a gateway node. The configuration file names its controller."

    def find_problems(self, reactor: Any) -> SetupProblems:
        """Return everything that would keep the gateway from starting. Open no port, and write nothing."""
        return check(reactor, self.config, self.file)


def makeService(options: Options) -> Service:
    """Return the service, which is not started yet."""

    def make(reactor: Any, problems: Any) -> DataServer:
        use_dns(reactor)
        return DataServer(reactor, options.config, options.file, problems=problems)

    return make_daemon(options, machine_problems(options.config, options.inherited), make)
