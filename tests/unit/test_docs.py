"""The pages in docs/, held to the code; the tests that they name are looked for in test_promises.py."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

from scistream.s2cs.policy import RuleSection, load_policy
from scistream.s2cs.rules import Asked, Standing
from scistream.security.tls import Identity

ROOT = Path(__file__).parents[2]


def test_the_page_of_policies_says_what_the_code_would_say(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "policy.rst").read_text()
    example = textwrap.dedent("    " + page.partition("# policy.toml\n    ")[2].partition("\n\n")[0])
    (tmp_path / "policy.toml").write_text(example.replace("pki/ca.pem", "none"))
    policy = load_policy(tmp_path / "policy.toml")
    refused = policy.decide(Identity("none", "ada@lab.example"), Asked("PROD", 10_000.0, 1), Standing())
    assert not refused.allowed
    assert page.count(refused.reason) == 2
    settings = set(RuleSection.__struct_fields__) - {"name", "issuer", "identities"}
    assert settings == set(re.findall(r"^``(\w+)`` ", page, re.MULTILINE))
