"""The command `s2uc explain`: show what `scistream.explanations` says of a code."""

from __future__ import annotations

import difflib
import json
import shutil

import click

from scistream.explanations import EXPLANATIONS, KINDS, Explanation

_WIDEST = 100


def codes_that_begin(text: str) -> list[str]:
    """Return the codes that begin with a text."""
    return [code for code in EXPLANATIONS if code.startswith(text.lower())]


def explain_code(text: str | None, as_json: bool) -> None:
    """Print the explanation of a code, or the list of all codes.

    :param text: a code, or a message that begins with one: ``error: no-ports: ...``.
    :raises UsageError: if there is no such code.
    """
    if text is None:
        _list(as_json)
        return
    found = _find(text)
    if as_json:
        click.echo(json.dumps(found._asdict()))
        return
    _print(f"{found.code}: ", KINDS[found.kind])
    for heading, words in (("Meaning", found.meaning), ("Who acts", found.who), ("What to do", found.remedy)):
        _print(f"{heading}: ", words)


def _find(text: str) -> Explanation:
    words = [word.strip().lower() for word in text.split(":")]
    for word in words:
        if word in EXPLANATIONS:
            return EXPLANATIONS[word]
    similar = difflib.get_close_matches(words[0], EXPLANATIONS, n=3)
    hint = f"did you mean {' or '.join(similar)}?" if similar else "`s2uc explain` without a code lists all"
    raise click.UsageError(f"there is no code {text!r}: {hint}")


def _list(as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"codes": [one._asdict() for one in EXPLANATIONS.values()]}))
        return
    width = max(map(len, EXPLANATIONS)) + 2
    for number, (kind, what) in enumerate(KINDS.items()):
        if number:
            click.echo()
        _print("", f"{what}:"[0].upper() + f"{what}:"[1:])
        for one in EXPLANATIONS.values():
            if one.kind == kind:
                _print(f"  {one.code:<{width}}", one.meaning.partition(". ")[0].rstrip(".") + ".", indent=width + 2)


def _print(start: str, words: str, indent: int = 2) -> None:
    columns = min(_WIDEST, shutil.get_terminal_size().columns)
    click.echo(click.wrap_text(words, columns - 1, start, " " * indent))
