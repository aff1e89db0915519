"""Each command has a manual page, made of its help, which man and mandoc format without a warning."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.requirements import needs

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs"))

from command_tree import PROGRAMS, every_command  # noqa: E402
from man_pages import pages  # noqa: E402

COMMANDS = [command for name in PROGRAMS for command in every_command(name)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write all pages."""
    folder = tmp_path_factory.mktemp("man")
    for name, text in pages():
        (folder / name).write_text(text)
    return folder


def run(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "LC_ALL": "C.UTF-8", "MANROFFSEQ": "", "MANWIDTH": "80"}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=60, check=False)


def test_each_command_has_a_page(folder: Path) -> None:
    assert {page.stem for page in folder.iterdir()} == {command.path.replace(" ", "-") for command in COMMANDS}


def test_a_page_says_what_the_help_says(folder: Path) -> None:
    needs("man")
    shown = {}
    for name in ("s2uc-request", "appctrl", "scistream-pki-issue"):
        plain = run("man", "-l", "--nh", "--nj", f"./{name}.1", cwd=folder)
        assert plain.returncode == 0, plain.stderr
        shown[name] = " ".join(plain.stdout.split())
    for command in COMMANDS:
        if (text := shown.get(command.path.replace(" ", "-"))) is not None:
            for option, meaning in command.options:
                assert " ".join(option.split()) in text
                assert " ".join(meaning.replace("`", "").split()) in text
    assert "127 `appctrl` has not".replace("`", "") in shown["appctrl"]
    assert "SCISTREAM_JOIN" in shown["appctrl"]


@pytest.mark.parametrize("tool", ["man", "mandoc"])
def test_no_page_makes_a_formatter_warn(folder: Path, tool: str) -> None:
    needs(tool)
    pages = sorted(page.name for page in folder.iterdir())
    if tool == "mandoc":
        said = run("mandoc", "-T", "lint", "-W", "warning", *pages, cwd=folder)
        assert said.stdout + said.stderr == ""
        return
    for page in ("s2uc.1", "s2uc-request.1", "appctrl.1", "scistream-pki-issue.1"):  # man takes long for each
        said = run("man", "--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z", f"./{page}", cwd=folder)
        assert (said.returncode, said.stderr) == (0, ""), page


def test_a_line_of_help_cannot_become_a_command_of_the_formatter() -> None:
    for name, text in pages():
        for line in text.splitlines():
            assert not line.startswith("'"), name
            if line.startswith("."):
                assert line.split()[0] in {".TH", ".SH", ".B", ".BR", ".PP", ".TP", ".nf", ".fi"}, (name, line)
