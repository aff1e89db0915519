"""The plugin behind `twistd s2cs`."""

from __future__ import annotations

import time
from typing import Any

from twisted.application.service import Service

from scistream.s2cs.dry_run import check
from scistream.s2cs.service import NEEDS_RESTART, ControlServer
from scistream.s2cs.settings import S2CSConfig
from scistream.s2cs.start import machine_problems
from scistream.setup_problems import SetupProblems
from scistream.twistd import DaemonOptions, make_daemon


class Options(DaemonOptions[S2CSConfig]):
    """Run an S2CS, the control server of a facility."""

    config_type = S2CSConfig
    party = "s2cs"
    fixed = NEEDS_RESTART
    optFlags = (("release-unknown", None, "Release streams on the gateways of which the store has no record."),)
    synopsis = "[options]\n\nRuns the control server (S2CS) of a facility."

    def find_problems(self, reactor: Any) -> SetupProblems:
        """Return everything that would keep the S2CS from starting. Open no port, and write nothing."""
        return check(reactor, self.config, self.file, time.time())


def makeService(options: Options) -> Service:
    """Return the S2CS as a service that is not started yet."""
    config = options.config
    return make_daemon(
        options,
        machine_problems(config, options.file, options.inherited),
        lambda reactor, problems: ControlServer(
            reactor, config, options.file, problems=problems, release_unknown=bool(options["release-unknown"])
        ),
    )
