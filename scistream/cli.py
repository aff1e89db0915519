"""The command ``scistream``: tools for the operator of a facility, and the demonstration.

Each group of commands is defined beside the code that it calls.
"""

from __future__ import annotations

import click

from scistream import __version__
from scistream.check.cli import check
from scistream.cli_support import Commands
from scistream.demo.cli import demo
from scistream.pki.cli import pki
from scistream.reference.cli import examples, schema
from scistream.s2cs.policy.cli import policy
from scistream.s2cs.store.cli import store
from scistream.s2cs.store.usage_cli import usage
from scistream.s2uc.drain import drain


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="scistream")
def main() -> None:
    """Tools for operators of SciStream, and a demonstration.

    To request a stream, use s2uc; to join one with an application, use appctrl. The servers of a facility are started
    with `twistd s2cs` and `twistd s2ds`. This command makes their certificates, checks the policy and the store of an
    S2CS, adds up usage, and empties a gateway before it is stopped.
    """


main.add_command(demo)
main.add_command(store)
main.add_command(policy)
main.add_command(pki)
main.add_command(usage)
main.add_command(examples)
main.add_command(check)
main.add_command(drain)
main.add_command(schema)
