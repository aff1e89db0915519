"""Facilities of two authorities: if the user's configuration names those of a facility, no other is accepted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from harness import World

from scistream.config import ConfigError, load
from scistream.s2uc.settings import S2UCConfig
from support.facilities import Facility

pytestmark = pytest.mark.usefixtures("nothing_left")


def config(world: World, folder: Path, named: dict[str, Facility], others: list[Facility]) -> list[str]:
    """Return the option for a configuration with named authorities for some facilities, and others for the rest."""
    users = world.folder / "users"
    settings = {
        "certificate": str(users / "ada.pem"),
        "key": str(users / "ada.key"),
        "authorities": [str(one.authority) for one in others],
        "facilities": [
            {"address": address, "authorities": [str(facility.authority)]} for address, facility in named.items()
        ],
    }
    file = folder / "s2uc.toml"
    file.write_text(tomli_w.dumps(settings))
    return ["--config", str(file)]


def request(world: World, options: list[str]) -> Any:
    between = ["--prod", world.lab.s2cs, "--cons", world.centre.s2cs, "--rate", "100Mbit"]
    ended = world.start_s2uc("request", "--json", *between, "--timeout", "2s", *options).end(status=1)
    return [json.loads(line) for line in ended.stdout.splitlines()]


@pytest.mark.parametrize("named", ["both", "one"])
def test_a_facility_is_vouched_for_by_the_authority_that_is_named_for_it(
    world: World, tmp_path: Path, named: str
) -> None:
    lab, centre = world.facilities
    mine = {lab.s2cs: lab, centre.s2cs: centre} if named == "both" else {lab.s2cs: lab}
    first, _last = request(world, config(world, tmp_path, mine, [] if named == "both" else [centre]))
    assert first["state"] == "Reserved"


def test_another_authority_does_not_count_for_a_facility_that_names_its_own(world: World, tmp_path: Path) -> None:
    lab, centre = world.facilities
    options = config(world, tmp_path, {centre.s2cs: lab}, [lab, centre])
    (last,) = request(world, options)
    assert last["error"]["code"] == "not-authenticated"
    assert centre.s2cs in last["error"]["msg"]
    for command in (["list", "--at", centre.s2cs], ["probe", "--prod", lab.s2cs, "--cons", centre.s2cs]):
        assert world.s2uc(*command, *options, check=False).returncode == 1


def test_a_facility_for_which_no_authority_is_named_is_not_dialled(world: World, tmp_path: Path) -> None:
    lab, centre = world.facilities
    options = config(world, tmp_path, {lab.s2cs: lab}, [])
    ended = world.s2uc("list", "--at", centre.s2cs, *options, check=False)
    assert ended.returncode == 1
    assert f"no authority vouches for {centre.s2cs}" in ended.stderr


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('[[facilities]]\naddress = "lab"\nauthorities = ["a.pem"]', "'lab'"),
        ('[[facilities]]\naddress = "lab:1"\nauthorities = []', "nothing vouches for this facility"),
        ('[[facilities]]\naddress = "lab:1"\nauthorities = ["a"]\n' * 2, "two have the same address"),
        ('[[facilities]]\naddress = "lab:1"\n', "authorities"),
    ],
)
def test_a_facility_that_is_named_wrongly_is_refused(tmp_path: Path, text: str, named: str) -> None:
    file = tmp_path / "s2uc.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as refused:
        load(file, S2UCConfig)
    assert named in str(refused.value)


def test_a_program_takes_its_certificates_from_the_user_s_configuration(world: World, tmp_path: Path) -> None:
    import subprocess
    import sys

    script = f"""
import asyncio
from scistream.s2uc.client import Client
async def main():
    async with Client.from_config() as client:
        print(await client.streams_at({world.lab.s2cs!r}))
asyncio.run(main())
"""
    ended = subprocess.run(
        [sys.executable, "-c", script], env=world.env, capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.stdout, ended.stderr) == ("[]\n", "")
