"""Help appears at once: nothing that takes long to import is imported for it."""

from __future__ import annotations

import json
import subprocess
import sys

import click
import pytest

import scistream.cli
from bench.startup import COMMANDS, main

HEAVY = ("twisted", "cryptography", "OpenSSL", "rich", "asyncio", "ssl", "automat", "sqlite3")
HELP = [command for command in COMMANDS if command.endswith("--help")]
SCRIPT = """
import json, sys
from importlib import import_module
from click.testing import CliRunner
modules = {"s2uc": "scistream.s2uc.cli", "appctrl": "scistream.app.cli", "scistream": "scistream.cli"}
import_module("scistream.entry"), import_module("scistream.app.startup")
found = {}
for command in sys.argv[1:]:
    name, *arguments = command.split()
    result = CliRunner().invoke(import_module(modules[name]).main, arguments, prog_name=name)
    assert result.exit_code == 0, result.output
    found[command] = sorted(sys.modules)
print(json.dumps(found))
"""


def test_the_help_of_a_program_imports_nothing_that_takes_long() -> None:
    asked = [*HELP, "s2uc probe --help", "appctrl cons --help", "s2uc status --help"]
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT, *asked], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stderr
    for command, modules in json.loads(ended.stdout).items():
        assert [name for name in modules if name.partition(".")[0] in HEAVY] == [], command


def test_a_list_without_certificates_needs_neither_the_reactor_nor_cryptography() -> None:
    script = (
        "import sys; from click.testing import CliRunner; import scistream.s2uc.cli as cli\n"
        "cli.keep_secrets = lambda: None\n"
        "result = CliRunner().invoke(cli.main, ['list'], env={'XDG_STATE_HOME': '/none', 'XDG_CONFIG_HOME': '/none'})\n"
        "assert (result.exit_code, result.output) == (0, 'no streams\\n'), result.output\n"
        "print(*(name for name in ('twisted.internet.reactor', 'cryptography', 'OpenSSL') if name in sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout) == (0, "\n"), ended.stderr


def test_the_short_help_of_commands_that_are_imported_late_is_their_own() -> None:
    context = click.Context(scistream.cli.main)
    for name, lazy in scistream.cli._COMMANDS.items():
        command = scistream.cli.main.get_command(context, name)
        assert command is not None
        assert lazy.short_help == command.get_short_help_str(200), name


def test_the_start_of_the_commands_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--runs", "1", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert [start["command"] for start in found] == list(COMMANDS)
    assert all(start["cpu"] > 0 and start["wall"] > 0 for start in found)
