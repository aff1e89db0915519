"""The command ``scistream``: tools for the operator of a facility, and the demonstration.

Each command is defined beside the code that it calls, and imported when it is used.
"""

from __future__ import annotations

import click

from scistream import __version__
from scistream.cli_support import Commands, Lazy, add_completion

_COMMANDS = {
    "check": Lazy(
        "scistream.check.cli:check",
        "Look at this machine as a network engineer would, before a server starts or while it runs.",
    ),
    "demo": Lazy("scistream.demo.cli:demo", "Stream between two facilities on this machine."),
    "drain": Lazy(
        "scistream.s2uc.drain:drain",
        "Let no new streams begin on GATEWAY, or at the whole S2CS, and wait until none is left there.",
    ),
    "examples": Lazy("scistream.reference.cli:examples", "Write the commented example files into DIR."),
    "pki": Lazy("scistream.pki.cli:pki", "Issue, explain, renew and revoke the certificates of a facility."),
    "policy": Lazy("scistream.s2cs.policy.cli:policy", "Inspect the policy of an S2CS."),
    "schema": Lazy(
        "scistream.reference.cli:schema",
        "Print the JSON Schema of a configuration file: s2cs, s2ds, s2uc or policy.",
    ),
    "store": Lazy("scistream.s2cs.store.cli:store", "Inspect the store of an S2CS."),
    "usage": Lazy("scistream.s2cs.store.usage_cli:usage", "Show how much each identity has moved on each day (UTC)."),
}


@click.group(cls=Commands, lazy=_COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="scistream")
def main() -> None:
    """Tools for operators of SciStream, and a demonstration.

    To request a stream, use s2uc; to join one with an application, use appctrl. The servers of a facility are started
    with `twistd s2cs` and `twistd s2ds`. This command writes example files, makes certificates, checks a
    machine, the policy and the store of an S2CS, adds up usage, and empties a gateway before it is stopped.

    Exit status: 0 success; 1 a check has found a problem, or the command failed; 2 wrong usage or configuration.
    """


add_completion(main, "scistream")
