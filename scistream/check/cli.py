"""The command `scistream check`."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import click

from scistream.cli_support import ADDRESS, RATE, TIME, refuse
from scistream.config import ConfigError
from scistream.protocol.address import Address
from scistream.protocol.errors import printable


@click.command()
@click.option(
    "--config",
    "-c",
    "file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The configuration of the S2CS or S2DS of this machine (s2cs.toml or s2ds.toml). Default: the machine alone.",
)
@click.option(
    "--peer",
    metavar="HOST:PORT",
    type=ADDRESS,
    help="Another host to connect to, such as the S2CS or a web server of the other facility: shows the round-trip "
    "time, the packets of the path and, of a web server, the clock.",
)
@click.option("--rate", type=RATE, help="The rate that one connection should reach, such as 10Gbit.")
@click.option("--rtt", type=TIME, help="The round-trip time of the WAN, such as 50ms. Default: that of --peer.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def check(file: Path | None, peer: Address | None, rate: float | None, rtt: float | None, as_json: bool) -> None:
    """Look at this machine as a network engineer would, before a server starts or while it runs.

    Prints one line for each finding: OK, WARN, FAIL, or UNSEEN for what this user may not see, with the reason and what
    to do. Nothing is changed. Connections are made only to --peer, and by the configuration of an S2CS to its gateways.

    Exit status: 0 no FAIL, 1 at least one FAIL, 2 wrong usage or configuration.
    """
    # Here, since they import both parties, which other commands need not wait for.
    from scistream.check.plan import CheckPlan, settings_of
    from scistream.check.run import check as all_findings
    from scistream.s2cs.settings import S2CSConfig
    from scistream.s2ds.settings import S2DSConfig

    if rate is not None and rtt is None and peer is None:
        raise click.UsageError("--rate needs --rtt or --peer: how long a round trip is decides which buffers it takes")
    try:
        config = settings_of(file) if file is not None else None
    except ConfigError as problem:
        refuse(problem)
    server = config if isinstance(config, S2CSConfig) else None
    gateway = config if isinstance(config, S2DSConfig) else None
    plan = CheckPlan(file, server, gateway, peer, rate, rtt)
    counts: Counter[str] = Counter()
    found = []
    for finding in all_findings(plan):
        counts[finding.verdict] += 1
        found.append(finding)
        if not as_json:
            click.echo(printable(finding.line()))
    summary = {verdict: counts[verdict] for verdict in ("OK", "WARN", "FAIL", "UNSEEN")}
    if as_json:
        click.echo(json.dumps({"findings": [asdict(finding) for finding in found], "counts": summary}))
    else:
        click.echo(", ".join(f"{count} {verdict}" for verdict, count in summary.items()))
    sys.exit(1 if counts["FAIL"] else 0)
