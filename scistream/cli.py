"""The command ``scistream``: certificates of a facility, a look at its S2CS's store and policy, and a demonstration.

What S2UC and the application controllers do has commands of its own. Each group of commands here lives with what it
calls.
"""

from __future__ import annotations

import click

from scistream import __version__
from scistream.cli_support import Commands
from scistream.demo.cli import demo
from scistream.pki.cli import pki
from scistream.s2cs.policy.cli import policy
from scistream.s2cs.store.cli import store
from scistream.s2cs.store.usage_cli import usage


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="scistream")
def main() -> None:
    """Memory-to-memory streams between scientific facilities.

    A stream is asked for with s2uc, and an application joins it with appctrl; the servers of a facility are
    run with twistd s2cs and twistd s2ds. This command is for what comes before: the certificates by which
    all of them know each other.
    """


main.add_command(demo)
main.add_command(store)
main.add_command(policy)
main.add_command(pki)
main.add_command(usage)
