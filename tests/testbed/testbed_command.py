"""The command ``scistream-testbed``, for using a testbed by hand."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import click
import netns
from rich.console import Console
from rich.table import Table
from testbed import HOSTS, MTU, ON_WAN, Testbed, TestbedError, Way, parse_limit, parse_share, parse_time
from testbed_facilities import Facilities, user_environment
from wan_router import Settings

WHO = {
    "plan": "producer's LAN: ProdApp",
    "pgw": "producer's gateway: S2CS, S2DS",
    "wan": "the router of the WAN",
    "cgw": "consumer's gateway: S2CS, S2DS",
    "clan": "consumer's LAN: ConsApp",
    "user": "the user's laptop: s2uc",
}


class _Group(click.Group):
    """Commands whose problems are sentences."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except TestbedError as problem:
            raise click.ClickException(str(problem)) from None


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--id", default="0", show_default=True, help="Which testbed; there may be several at once.")
@click.pass_context
def main(ctx: click.Context, id: str) -> None:
    """Create two facilities, a WAN with faults on demand, and a user, in network namespaces of this machine, as root.

    \b
        scistream-testbed up --facilities
        scistream-testbed exec user s2uc request --prod 198.19.0.10:5000 --cons 198.19.0.20:5000
        scistream-testbed exec plan bash
        scistream-testbed wan --delay 50ms --loss 1%
        scistream-testbed status
        scistream-testbed down
    """  # noqa: D301  # click needs the character that \b stands for
    ctx.obj = Testbed(id, lasting=True)


@main.command()
@click.option("--mtu", type=click.IntRange(1280, 65520), default=MTU, show_default=True, help="Of the WAN, in bytes.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of the WAN's chances.")
@click.option("--facilities", is_flag=True, help="With an S2CS and an S2DS at each gateway, and a user.")
@click.pass_obj
def up(testbed: Testbed, mtu: int, seed: int, facilities: bool) -> None:
    """Make the testbed."""
    testbed.mtu, testbed.seed = mtu, seed
    testbed.up()
    if facilities:
        try:
            running = Facilities(testbed)
            running.start()
        except BaseException:
            testbed.down()
            raise
        click.echo(
            f"S2CS of the producer's facility: {running.producer.s2cs}, of the consumer's: {running.consumer.s2cs}"
        )
    click.echo(f"testbed {testbed.id} is up; its files are in {testbed.folder}")


@main.command()
@click.option("--all", "everything", is_flag=True, help="All testbeds of this machine, and what is left over of any.")
@click.pass_obj
def down(testbed: Testbed, everything: bool) -> None:
    """End all that runs in the testbed, and remove it."""
    for one in Testbed.existing() if everything else [testbed]:
        there = one.leftovers()
        one.down()
        click.echo(f"testbed {one.id} is down" if there else f"there is no testbed {one.id}")


@main.command(
    "exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False, "help_option_names": []}
)
@click.argument("host", type=click.Choice(HOSTS))
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_obj
def execute(testbed: Testbed, host: str, command: tuple[str, ...]) -> None:
    """Run COMMAND on HOST. On `user`, s2uc finds its configuration."""
    if testbed.namespace(host) not in netns.names():
        raise TestbedError(f"testbed {testbed.id} is not up")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    env = {**os.environ, "PATH": path, **(user_environment(testbed) if host == "user" else {})}
    argv = testbed.command(host, command)
    sys.stdout.flush()
    os.execvpe(argv[0], argv, env)


def _value(parse: Callable[[str], Any]) -> Callable[[click.Context, click.Parameter, str | None], str | None]:
    """Return a callback that refuses values that cannot be parsed."""

    def check(_ctx: click.Context, _parameter: click.Parameter, text: str | None) -> str | None:
        try:
            if text is not None:
                parse(text)
        except ValueError as wrong:
            raise click.BadParameter(str(wrong)) from None
        return text

    return check


@main.command()
@click.option("--between", nargs=2, type=click.Choice(ON_WAN), help="Only on the way between these two.")
@click.option("--one-way", is_flag=True, help="With --between: only from the first to the second.")
@click.option("--clear", is_flag=True, help="First, all as it was in the beginning.")
@click.option("--delay", metavar="TIME", callback=_value(parse_time), help="50ms, each way.")
@click.option(
    "--jitter", metavar="TIME", callback=_value(parse_time), help="Up to so much more or less; keeps the order."
)
@click.option("--loss", metavar="SHARE", callback=_value(parse_share), help="1%")
@click.option("--duplicate", metavar="SHARE", callback=_value(parse_share), help="These arrive twice.")
@click.option("--reorder", metavar="SHARE", callback=_value(parse_share), help="These arrive 5 ms late, after others.")
@click.option("--rate", metavar="RATE", callback=_value(parse_limit), help="100Mbit, each way; or none.")
@click.option("--queue", metavar="TIME", callback=_value(parse_time), help="With a rate: what waits longer is dropped.")
@click.option(
    "--forget-idle", metavar="TIME", callback=_value(parse_time), help="A middlebox drops what was idle longer; 0: no."
)
@click.option(
    "--reset-idle", metavar="TIME", callback=_value(parse_time), help="A middlebox resets what was idle so long; 0: no."
)
@click.option(
    "--strip-multipath/--keep-multipath", default=None, help="A middlebox removes the option of Multipath TCP."
)
@click.option("--cut/--heal", default=None, help="Nothing passes; or it does again.")
@click.pass_obj
def wan(testbed: Testbed, /, between: tuple[str, str] | None, **options: Any) -> None:
    """Mistreat what crosses the WAN, from now on; say how it is treated.

    What is not named stays as it is. All ways are meant, unless --between names two hosts.
    """
    if options["one_way"] and between is None:
        raise click.UsageError("--one-way needs --between")
    ways = testbed.wan(between, **{name: value for name, value in options.items() if value is not None})
    for way in ways:
        click.echo(f"{way.source:>4} > {way.target:4}  {_treatment(way.settings)}")


@main.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.pass_obj
def status(testbed: Testbed, as_json: bool) -> None:
    """Show hosts, what runs there, and what the WAN has carried and dropped."""
    if not testbed.is_up():
        others = ", ".join(one.id for one in Testbed.existing()) or "none"
        raise TestbedError(f"testbed {testbed.id} is not up; of others there are: {others}")
    ways = testbed.wan()
    running = {host: sorted(netns.processes([testbed.namespace(host)])) for host in HOSTS}
    if as_json:
        click.echo(json.dumps({"id": testbed.id, "processes": running, "ways": [asdict(way) for way in ways]}))
        return
    console = Console() if sys.stdout.isatty() else Console(width=160)
    hosts = Table("host", "what", "namespace", "processes", "addresses", title=f"testbed {testbed.id}")
    for host in HOSTS:
        pids = " ".join(map(str, running[host]))
        hosts.add_row(host, WHO[host], testbed.namespace(host), pids, _addresses(testbed, host))
    console.print(hosts)
    console.print(_carried(ways))


def _addresses(testbed: Testbed, host: str) -> str:
    v4 = vars(testbed.v4)
    return ", ".join(v4[name] for name in (host, f"{host}_lan") if name in v4 and host != "wan")


def _carried(ways: list[Way]) -> Table:
    table = Table(
        *(
            "way",
            "packets",
            "MB",
            "lost",
            "cut",
            "queue full",
            "host",
            "forgotten",
            "twice",
            "late",
            "reset",
            "stripped",
        ),
        "treatment",
        title="the WAN",
    )
    for way in ways:
        c = way.counters
        dropped = (c.dropped_loss, c.dropped_cut, c.dropped_queue, c.dropped_host, c.dropped_forgotten)
        counts = (*dropped, c.duplicated, c.reordered, c.resets, c.stripped)
        carried = (str(c.delivered_packets), f"{c.delivered_bytes / 1e6:.3f}")
        table.add_row(f"{way.source} > {way.target}", *carried, *map(str, counts), _treatment(way.settings))
    return table


def _treatment(settings: Settings) -> str:
    """Describe the settings that differ from the defaults."""
    usual = Settings()
    words = []
    for name in (one.name for one in fields(settings)):
        value = getattr(settings, name)
        if value == getattr(usual, name):
            continue
        if name in ("cut", "strip_multipath"):
            words.append(name.replace("_", " "))
        elif name == "rate":
            words.append(f"rate {value / 1e6:g}Mbit")
        elif name in ("loss", "duplicate", "reorder"):
            words.append(f"{name} {value * 100:g}%")
        else:
            words.append(f"{name.replace('_', ' ')} {value * 1000:g}ms")
    return ", ".join(words) or "as it comes"


if __name__ == "__main__":
    main(prog_name="scistream-testbed")
