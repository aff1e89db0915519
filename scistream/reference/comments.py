"""The comments of the example files, which describe each setting. The list of settings and the schemas take them."""

from __future__ import annotations

import re
from collections.abc import Sequence

_KEY = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)\s*=")
_SECTION = re.compile(r"\[\[?([A-Za-z_.]+)\]\]?\s*\Z")


def comments_of(text: str) -> dict[str, str]:
    """Return the comment of each setting and section of an example file, by keys such as ``limits.links``.

    A comment is above its setting, with no blank line between. Settings that follow each other without a comment of
    their own have the same one, which is that of their section if none of them has one. Lines that are indented within
    a comment stay lines; all others are joined to paragraphs, with a newline after each.
    """
    found: dict[str, str] = {}
    section, comment, lines = "", "", list[str]()
    for line in text.splitlines():
        if line.startswith("#"):
            lines.append(line[1:].removeprefix(" "))
            continue
        named, key = _SECTION.match(line), _KEY.match(line)
        if named or key:
            comment = _joined(lines) if lines else comment
        if named:
            section = f"{named[1]}."
            found[named[1]] = comment if lines else ""
        elif key:
            found[f"{section}{key[1]}"] = comment
        if (named and not lines) or not (named or key):
            comment = ""
        lines = []
    return found


def _joined(lines: Sequence[str]) -> str:
    """Return the text of a comment: a line for each paragraph and for each indented line."""
    paragraphs: list[str] = []
    for line in lines:
        if not paragraphs or not line or line.startswith(" ") or paragraphs[-1].startswith(" ") or not paragraphs[-1]:
            paragraphs.append(line.rstrip())
        else:
            paragraphs[-1] += f" {line.strip()}"
    return "\n".join(paragraphs)
