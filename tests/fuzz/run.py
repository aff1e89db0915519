"""Runs every fuzz target for its share of the time: `make fuzz`.

Progress goes to standard error; the last line, on standard output, is one JSON object with the counts of each target.
What was learnt stays in `.fuzz/TARGET` for the next run; an input that shows a fault is saved there too, with how to
run it again. The exit status is 1 if there is one.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
KEPT = HERE.parent.parent / ".fuzz"

SHARES = {
    "codec": 1,
    "parsers": 1,
    "credentials": 2,
    "s2cs_user": 4,
    "s2cs_application": 2,
    "s2cs_gateway": 3,
    "s2ds": 3,
    "s2uc": 3,
    "app": 2,
}
"""The targets, and how much of the time each gets: a party is slower than the codec."""

OPTIONS = ["-max_len=16384", "-timeout=60", "-rss_limit_mb=2048", "-print_final_stats=1"]
_PULSE = re.compile(r"#(\d+)\s+(?:DONE|NEW|REDUCE|pulse|INITED|RELOAD).*cov: (\d+) ft: (\d+) corp: (\d+)")
_TOTAL = re.compile(r"stat::number_of_executed_units:\s*(\d+)")
_SAVED = re.compile(r"Test unit written to (\S+)")
_TELL_EVERY = 15.0
_LEFT_ALONE = 60.0


@dataclass
class Counts:
    """The results of one target."""

    executions: int = 0
    coverage: int = 0
    features: int = 0
    corpus: int = 0
    crashes: list[str] = field(default_factory=list)


def main() -> int:
    """Run the targets that are asked for."""
    arguments = _arguments()
    shares = {name: SHARES[name] for name in arguments.targets or SHARES}
    began = time.monotonic()
    counts = {
        name: _run(name, max(1, round(arguments.seconds * share / sum(shares.values()))))
        for name, share in shares.items()
    }
    crashes = sum(len(one.crashes) for one in counts.values())
    result = {
        "seconds": round(time.monotonic() - began),
        "executions": sum(one.executions for one in counts.values()),
        "crashes": crashes,
        "targets": {name: vars(one) for name, one in counts.items()},
    }
    print(json.dumps(result))
    return 1 if crashes else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Look for inputs that a part of SciStream cannot stand.")
    parser.add_argument("targets", nargs="*", choices=[*SHARES, []], help="which; all if none is named")
    parser.add_argument("--seconds", type=float, default=600.0, help="in all (600)")
    return parser.parse_args()


def _run(name: str, seconds: int) -> Counts:
    folder = KEPT / name
    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    program = HERE / f"fuzz_{name}.py"
    command = [sys.executable, str(program), *OPTIONS]
    command += [f"-max_total_time={seconds}", f"-artifact_prefix={folder}/", str(corpus)]
    _say(f"{name}: {seconds} s")
    counts = Counts()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        last_words = _follow(name, process.stderr, counts)
        try:
            status = process.wait(_LEFT_ALONE)
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait(_LEFT_ALONE)
    if status:
        _say("".join(last_words))
        saved = _SAVED.findall("".join(last_words))
        counts.crashes = saved or [f"status {status}, and no input was saved"]
        for file in saved:
            _say(f"{name}: FAILED; once more: {sys.executable} {program} {file}")
    return counts


def _follow(name: str, errors: object, counts: Counts) -> list[str]:
    """Read what a fuzzer says to its end; its last words are given back."""
    told = time.monotonic()
    words: list[str] = []
    for line in errors:  # type: ignore[attr-defined]
        pulse, total = _PULSE.match(line), _TOTAL.match(line)
        if pulse is not None:
            counts.executions, counts.coverage, counts.features, counts.corpus = map(int, pulse.groups())
            if time.monotonic() - told > _TELL_EVERY:
                told = time.monotonic()
                _say(f"{name}: {counts.executions} executions, coverage {counts.coverage}, corpus {counts.corpus}")
        elif total is not None:
            counts.executions = int(total[1])
        else:
            words = [*words, line][-200:]
    return words


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
