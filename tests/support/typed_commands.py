"""Commands of a page, typed at several terminals in the order in which the page has them.

A page shows a command behind a prompt, such as ``lab$``, which names the terminal. `scripts` makes a shell script for
each terminal. The scripts run side by side, and each command waits for the end of the one before it on the page.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_LINE = re.compile(r"^    (.*)$", re.MULTILINE)
_PROMPT = re.compile(r"(\w*)\$ (.*)")

_WAITING = """
until [ -e "$STEPS/{before}" ]; do
    [ ! -e "$STEPS/failed" ] || exit 1
    sleep 0.05
done
"""


@dataclass(frozen=True)
class Typed:
    """A command as it is typed, with the file that it reads up to END.

    :ivar terminal: what stands before the ``$`` of the prompt.
    """

    terminal: str
    text: str


def typed(page: str) -> list[Typed]:
    """Return the commands of a page."""
    found: list[Typed] = []
    in_file = False
    for line in _LINE.findall(page):
        if in_file:
            found[-1] = Typed(found[-1].terminal, f"{found[-1].text}\n{line}")
            in_file = line != "END"
        elif prompt := _PROMPT.fullmatch(line):
            found.append(Typed(prompt[1], prompt[2]))
            in_file = line.endswith("<<END")
    return found


def scripts(commands: Sequence[Typed], until: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return a script for each terminal, for ``bash -em``: the shell at a terminal controls jobs, too.

    The scripts need the variable STEPS, an empty folder.


    :param until: for the beginning of a command that stays in its terminal, the condition, as a shell command, on which
        the next one is typed.
    """
    made: dict[str, str] = {}
    for number, command in enumerate(commands):
        text = _WAITING.format(before=number - 1) if number else ""
        done = f'touch "$STEPS/{number}"'
        for beginning, condition in (until or {}).items():
            if command.text.startswith(beginning):
                text += f"( until {condition}; do sleep 0.05; done; {done} ) &\n"
                done = ""
        made.setdefault(command.terminal, "trap '[ $? = 0 ] || touch \"$STEPS/failed\"' EXIT\n")
        made[command.terminal] += f"{text}{command.text}\n{done}\n"
    return made
