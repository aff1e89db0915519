"""What all fuzz targets share: the code under test, instrumented, and the call of the fuzzer.

A target is a program: ``python tests/fuzz/fuzz_codec.py [libFuzzer options] CORPUS`` looks for inputs that it fails
on, ``python tests/fuzz/fuzz_codec.py FILE`` runs one. `run.py` runs them all, a share of the time each.
"""

from __future__ import annotations

import logging
import random
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
logging.disable()  # `cryptography` and others may talk

with atheris.instrument_imports(include=["scistream"]):
    from support import hostile_parties, hostile_scripts

MOST_LINES = 60
PLAIN_SHARE = 0.2
"""How much of the mutating of scripts is left to the fuzzer's own, which knows of bytes alone."""
_MEMORY = Path("/dev/shm")


def fuzz(
    one_input: Callable[[bytes], None],
    seeds: Iterable[bytes],
    mutate: Callable[[bytes, int, int], bytes] | None = None,
) -> None:
    """Hand over to the fuzzer, which ends the process.

    :param one_input: raises on an input that shows a fault.
    :param seeds: inputs to begin with.
    :param mutate: makes another input of one, given the most bytes it may have and a number for its choices.
    """
    for folder in filter(Path.is_dir, map(Path, sys.argv[1:])):
        for number, seed in enumerate(seeds):
            (folder / f"seed-{number:03}").write_bytes(seed)
    options = {"custom_mutator": mutate} if mutate is not None else {}
    atheris.Setup(sys.argv, one_input, **options)
    atheris.Fuzz()


def fuzz_party(kind: type[hostile_parties.Party]) -> None:
    """Fuzz one party by what its far side says."""
    scripts = hostile_parties.SCRIPTS[kind]
    lines = [line for script in scripts for line in script]

    def one_input(data: bytes) -> None:
        with tempfile.TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else None) as folder:
            party = kind(Path(folder))
            try:
                party.hear(data.split(b"\n")[:MOST_LINES])
            finally:
                party.close()

    def mutate(data: bytes, most: int, number: int) -> bytes:
        chance = random.Random(number)
        if chance.random() < PLAIN_SHARE:
            return bytes(atheris.Mutate(data, most))
        script = data.split(b"\n")
        hostile_scripts.mutate(script, chance, lines)
        return b"\n".join(script)[:most]

    fuzz(one_input, [b"\n".join(script) for script in scripts], mutate)
