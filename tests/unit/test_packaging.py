"""The requirements in setup.cfg, and the versions in constraints.txt."""

from __future__ import annotations

import configparser
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = next(folder for folder in Path(__file__).parents if (folder / "setup.cfg").exists())


def test_each_requirement_has_a_tested_version_that_fits_it() -> None:
    pinned = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line[0] != "#"]
    versions = {canonicalize_name(one.name): str(one.specifier).removeprefix("==") for one in pinned}
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    texts = [parser["options"]["install_requires"], *parser["options.extras_require"].values()]
    requirements = [Requirement(line) for text in texts for line in text.split("\n") if line]
    assert len(requirements) > 20
    for requirement in requirements:
        assert versions.get(canonicalize_name(requirement.name), "none") in requirement.specifier, requirement
