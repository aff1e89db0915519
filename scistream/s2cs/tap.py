"""The plugin behind `twistd s2cs`."""

from __future__ import annotations

from twisted.application.service import Service

from scistream.accepting import check_bindable
from scistream.config import S2CSConfig
from scistream.daemon import DaemonOptions, make_daemon
from scistream.s2cs.service import ControlServer
from scistream.toml_file import unless
from scistream.wire.address import Address


class Options(DaemonOptions[S2CSConfig]):
    """Run an S2CS, the control server of a facility."""

    config_type = S2CSConfig
    optFlags = (("release-unknown", None, "Release what the gateways hold and the store has no record of."),)
    synopsis = "[options]\n\nRuns the control server (S2CS) of a facility. Its controller is named in the file."


def makeService(options: Options) -> Service:
    """The service, set up and not started."""
    config = options.config
    listen = unless(lambda text: check_bindable(Address.parse(text)), config.listen, "listen")
    return make_daemon(
        options,
        listen,
        lambda reactor, problems: ControlServer(
            reactor, config, options.file, problems=problems, release_unknown=bool(options["release-unknown"])
        ),
    )
