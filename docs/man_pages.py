"""Write a manual page for each command: ``python docs/man_pages.py FOLDER``. The text is that of ``--help``."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from command_tree import PROGRAMS, Command, every_command

from scistream import __version__
from scistream.explanations import EXPLANATIONS

_FILES = {
    "s2uc": {
        "~/.config/scistream/s2uc.toml": "Your certificate, the authorities of the facilities, and names for them. "
        "XDG_CONFIG_HOME may name another folder than ~/.config.",
        "~/.local/state/scistream/streams/": "The list of the streams that you have requested. XDG_STATE_HOME may name "
        "another folder than ~/.local/state.",
    }
}
_VARIABLES = {
    "s2uc": {"NO_COLOR": "If it is set, nothing is coloured.", "TERM": "If it is dumb, nothing is drawn in place."},
    "appctrl": {
        "SCISTREAM_JOIN": "The join string, which is a secret. The program that is started does not inherit it.",
        "SCISTREAM_LISTENERS": "Set for a consumer's program: all listeners, as a JSON list.",
    },
}
_STATUSES = {
    "s2uc": ("0", "1", "2", "130", "141"),
    "appctrl": ("0", "1", "2", "126", "127", "130"),
    "scistream": ("0", "1", "2", "130", "141"),
}


def pages() -> Iterator[tuple[str, str]]:
    """Yield the file name and the text of each page."""
    date = time.strftime("%Y-%m-%d", time.gmtime(float(os.environ.get("SOURCE_DATE_EPOCH") or time.time())))
    for program in PROGRAMS:
        for command in every_command(program):
            yield f"{_name(command)}.1", "\n".join(_page(command, program, date)) + "\n"


def _name(command: Command) -> str:
    return command.path.replace(" ", "-")


def _page(command: Command, program: str, date: str) -> Iterator[str]:
    yield f'.TH "{_name(command).upper()}" 1 "{date}" "SciStream {__version__}" "SciStream"'
    yield ".SH NAME"
    yield f"{_text(_name(command))} \\- {_text(command.summary)}"
    yield ".SH SYNOPSIS"
    yield f".B {_text(command.path)}"
    yield _text(command.usage)
    yield ".SH DESCRIPTION"
    for number, (is_kept, text) in enumerate(command.paragraphs):
        if number:
            yield ".PP"
        if is_kept:
            yield from (".nf", *map(_text, text.split("\n")), ".fi")
        else:
            yield _text(text)
    if command.options:
        yield ".SH OPTIONS"
        for option, meaning in command.options:
            yield from (".TP", f"\\fB{_text(option)}\\fR", _text(meaning))
    if command.below:
        yield ".SH COMMANDS"
        for sub in command.below:
            yield from (".TP", f".BR {_text(_name(sub))} (1)", _text(sub.summary) + ".")
    yield from _for_program(command, program)
    others = [_name(one) for one in _neighbours(command, program)]
    yield ".SH SEE ALSO"
    yield from (f".BR {_text(name)} (1){',' if name != others[-1] else ''}" for name in others)


def _for_program(command: Command, program: str) -> Iterator[str]:
    """Yield the sections that only the page of a whole program has."""
    if command.path != program:
        return
    yield ".SH EXIT STATUS"
    for status in _STATUSES[program]:
        yield from (".TP", f"\\fB{status}\\fR", _text(EXPLANATIONS[status].meaning))
    for heading, entries in (("FILES", _FILES), ("ENVIRONMENT", _VARIABLES)):
        if program in entries:
            yield f".SH {heading}"
            for name, meaning in entries[program].items():
                yield from (".TP", f"\\fI{_text(name)}\\fR", _text(meaning))


def _neighbours(command: Command, program: str) -> list[Command]:
    if command.path == program:
        programs = [next(every_command(name)) for name in PROGRAMS]
        return [one for one in programs if one.path != program]
    above = command.path.rpartition(" ")[0]
    return [one for one in every_command(program) if one.path == above]


def _text(text: str) -> str:
    """Return text for roff: escaped, and with text between back quotes in bold."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    if escaped.startswith((".", "'")):
        escaped = "\\&" + escaped
    return re.sub(r"`([^`]*)`", r"\\fB\1\\fR", escaped)


def main() -> None:
    """Write all pages into the folder that the command line names."""
    if len(sys.argv) != 2:
        sys.exit("usage: python docs/man_pages.py FOLDER")
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    written = list(pages())
    for name, text in written:
        (folder / name).write_text(text)
    print(f"{len(written)} manual pages in {folder}")


if __name__ == "__main__":
    main()
