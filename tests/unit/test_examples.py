"""`scistream examples`: the files of conf/ from the package, and nothing overwritten."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import scistream.cli
from scistream.config import load
from scistream.s2cs.settings import S2CSConfig
from scistream.s2ds.settings import S2DSConfig
from support.programs import INSTALLED

CONF = Path(__file__).parents[2] / "conf"


def examples(folder: Path) -> Result:
    return CliRunner().invoke(scistream.cli.main, ["examples", str(folder)])


def files_in(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def test_all_files_of_conf_are_written_and_named(tmp_path: Path) -> None:
    done = examples(tmp_path / "a" / "b")
    assert done.exit_code == 0
    written = files_in(tmp_path / "a" / "b")
    assert written >= files_in(CONF) >= {"s2cs.toml", "s2ds.toml", "systemd/s2ds.service"}
    assert set(done.output.split()) == {str(tmp_path / "a" / "b" / name) for name in written}
    for name in files_in(CONF):
        assert (tmp_path / "a" / "b" / name).read_bytes() == (CONF / name).read_bytes()
    load(tmp_path / "a" / "b" / "s2cs.toml", S2CSConfig)
    load(tmp_path / "a" / "b" / "s2ds.toml", S2DSConfig)


def test_nothing_is_written_if_one_of_the_files_exists(tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text("mine")
    done = examples(tmp_path)
    assert done.exit_code == 2
    assert str(tmp_path / "policy.toml") in done.output
    assert "name a new folder" in done.output
    assert files_in(tmp_path) == {"policy.toml"}
    assert (tmp_path / "policy.toml").read_text() == "mine"


def test_a_link_that_leads_nowhere_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "s2ds.toml").symlink_to(tmp_path / "elsewhere")
    assert examples(tmp_path).exit_code == 2
    assert not (tmp_path / "elsewhere").exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = examples(tmp_path / "file" / "below")
    assert done.exit_code == 2
    assert str(tmp_path / "file") in done.output
    assert "Traceback" not in done.output


@pytest.mark.parametrize("daemon", ["s2cs", "s2ds"])
def test_a_daemon_without_a_configuration_names_this_command(daemon: str, tmp_path: Path) -> None:
    command = [INSTALLED / "twistd", "-n", "--pidfile=", daemon]
    started = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path, check=False)
    assert started.returncode == 2
    assert "`scistream examples DIR`" in started.stderr
