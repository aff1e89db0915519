"""The command line of `make bench`."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
from rich.console import Console
from rich.status import Status
from twisted.internet.defer import CancelledError
from twisted.internet.error import ConnectingCancelledError

from bench import congestion, expectations, machine, peers, report
from bench.errors import BenchError, SkippedError
from bench.paths import Environment
from bench.profiles import FULL, QUICK, Profile, Work
from bench.rows import Row
from bench.workloads import all_works
from scistream.cli_support import ParsedType, run, start_logging
from scistream.protocol.errors import StreamError
from scistream.s2ds.settings import parse_elements

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"
PAGE = ROOT / "docs" / "performance.rst"
WIDTH = 140
"""The width of the output, in columns, if it is not a terminal."""

KEYS = [work.key for work in all_works(1, 0)]


def elements_setting(text: str) -> str | int:
    """Parse the setting `elements` of a gateway.

    :raises ValueError: with a sentence for the user.
    """
    setting = int(text) if text.isdigit() else text
    parse_elements(setting)
    return setting


@click.command(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
The workloads for --only:
"""
    + "\n".join(f"  {work.key:13} {work.about}" for work in all_works(1, 0))
    + """

Pass options through make in ARGS: make bench ARGS='--quick --only tls-1'.
docs/performance.rst explains the requirements and the table.""",
)
@click.option("--quick", is_flag=True, help="Fewer and shorter runs: under five minutes.")
@click.option("--only", type=click.Choice(KEYS), multiple=True, help="Run this workload only; may be repeated.")
@click.option(
    "--runs", type=click.IntRange(1, 1000), help=f"Runs of each path.  [default: {FULL.rounds}, quick {QUICK.rounds}]"
)
@click.option(
    "--elements",
    type=ParsedType("auto|N", elements_setting),
    default="auto",
    show_default=True,
    help="The setting `elements` of the SciStream gateways.",
)
@click.option(
    "--congestion",
    "everywhere",
    type=click.Choice(congestion.NAMES),
    help="The congestion control of all programs on all sides, in a network namespace of its own. Needs root.",
)
@click.option(
    "--streams", type=click.IntRange(3, 1000), default=30, show_default=True, help="setup: the number of streams."
)
@click.option(
    "--half-open",
    type=click.IntRange(0, 10_000),
    default=0,
    help="setup: the number of unfinished handshakes at the same time.",
)
@click.option(
    "--results",
    type=click.Path(file_okay=False, path_type=Path),
    default=RESULTS,
    help="Folder for latest.json and the plot; with --congestion, for a folder of that name with them.  "
    "[default: bench/results]",
)
@click.option("--page", is_flag=True, help="Do not measure; write the last results to docs/performance.rst.")
def main(
    quick: bool,
    only: Sequence[str],
    runs: int | None,
    elements: str | int,
    everywhere: str | None,
    streams: int,
    half_open: int,
    results: Path,
    page: bool,
) -> None:
    """Compare SciStream with HAProxy, nginx, stunnel and socat on this machine, in turn, and print one table.

    Exit status: 0 if every row meets its target, 1 if one does not, 2 if a program is missing.
    """
    if page:
        sys.exit(_write_page(results))
    profile = QUICK if quick else FULL
    profile = profile.with_rounds(runs or profile.rounds)
    workloads = [work for work in all_works(streams, half_open) if not only or work.key in only]
    programs = {program for work in workloads for program in work.programs(profile)}
    packages = peers.missing(sorted(programs))
    if packages:
        click.echo(
            f"error: these packages are not installed: {' '.join(packages)}\n"
            f"On Debian:  apt-get install --no-install-recommends {' '.join(packages)}",
            err=True,
        )
        sys.exit(2)
    for_all = None
    if everywhere:
        try:
            for_all = congestion.use_for_all(everywhere)
        except SkippedError as skipped:
            click.echo(f"error: {skipped}", err=True)
            sys.exit(2)
        results /= everywhere
    start_logging(0)
    bench = Bench(workloads, profile, sorted(programs), elements, for_all, results)
    sys.exit(run(bench.course))


class Bench:
    """One run of the benchmark."""

    def __init__(
        self,
        workloads: Sequence[Work],
        profile: Profile,
        programs: Sequence[str],
        elements: str | int,
        everywhere: congestion.ForAll | None,
        results: Path,
    ) -> None:
        self._works = workloads
        self._profile = profile
        self._programs = programs
        self._elements = elements
        self._congestion = everywhere
        self._results = results
        self._out = Console(width=None if sys.stdout.isatty() else WIDTH)
        self._progress = Console(stderr=True)

    async def course(self, reactor: Any) -> int:
        """Measure, print and save; return the exit status."""
        try:
            return await self._course(reactor)
        except ConnectingCancelledError:  # the error of an interrupted attempt to connect
            raise CancelledError from None

    async def _course(self, reactor: Any) -> int:
        facts = machine.describe(self._programs, self._congestion)
        for name, value in facts.items():
            self._out.print(f"{name:21} {value}", highlight=False, markup=False)
        with TemporaryDirectory(prefix="scistream-bench-", ignore_cleanup_errors=True) as folder:
            environment = Environment(reactor, Path(folder), self._elements, self._congestion)
            try:
                if self._programs:
                    await environment.open()
                rows = await self._measured(environment, facts)
            finally:
                await environment.close()
            for configuration in environment.configurations.values():
                self._out.print(configuration, highlight=False, markup=False)
        self._out.print(report.table(rows))
        for path in report.save(rows, facts, self._results):
            self._out.print(f"written: {path}", highlight=False)
        return 1 if any(row.met is False for row in rows) else 0

    async def _measured(self, environment: Environment, facts: dict[str, str]) -> list[Row]:
        rows: list[Row] = []
        with self._progress.status("") as status:
            for number, work in enumerate(self._works, 1):
                title = f"{number} of {len(self._works)}: {work.key} ({work.about})"
                tell = partial(self._show, status, title)
                try:
                    found = await work.rows(environment, self._profile, tell)
                except SkippedError as skipped:
                    tell(f"skipped: {skipped}")
                    facts[f"skipped: {work.key}"] = str(skipped)
                    continue
                except (BenchError, StreamError, OSError) as problem:
                    tell("\n".join([f"failed: {problem}", *getattr(problem, "log", [])]))
                    found = work.failed_rows()
                for row in found:
                    line = "  ".join(report.words(row)[:-1])
                    self._progress.print(line, highlight=False, markup=False, soft_wrap=True)
                rows += found
        return rows

    def _show(self, status: Status, title: str, what: str) -> None:
        """Show the current step: in place on a terminal, else as a line."""
        if self._progress.is_terminal and "\n" not in what:
            status.update(f"{title}: {what}")
        else:
            click.echo(f"{title}: {what}", err=True)


def _write_page(results: Path) -> int:
    try:
        rows, facts = report.load(results)
        page = report.into_page(PAGE.read_text(), rows, facts)
        page = report.between(page, expectations.BEGIN, expectations.END, expectations.expectations(rows))
        for name in congestion.NAMES:
            if (results / name).is_dir():
                page = report.into_page(page, *report.load(results / name), f" with {name}")
        PAGE.write_text(page)
        shutil.copy(results / "latest.svg", PAGE.with_suffix(".svg"))
    except (OSError, ValueError) as problem:
        click.echo(f"error: {problem}; run `make bench` first", err=True)
        return 2
    return 0


if __name__ == "__main__":
    main()
