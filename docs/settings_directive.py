"""The directive ``.. settings:: s2cs``: all settings of a configuration file, from the code and the example files."""

from __future__ import annotations

import re

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from scistream.reference import examples
from scistream.reference.settings_list import FILES, Setting, settings_of


class Settings(SphinxDirective):
    """Lists each setting with type, default, description, and whether a reload can change it."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Make the list; the page is built again when the example file changes."""
        file = FILES[self.arguments[0]]
        self.env.note_dependency(str(examples.CONF / f"{file.name}.toml"))
        found = nodes.definition_list(classes=["settings"])
        for setting in settings_of(file):
            found += _entry(file.name, setting)
        return [found]


def _entry(name: str, setting: Setting) -> nodes.Node:
    term = nodes.term()
    label = f"setting-{name}-{re.sub('[^a-z]+', '-', setting.key).strip('-')}"
    title = setting.key if setting.type else f"[{setting.key.removesuffix('[]')}]"
    if setting.key.endswith("[]"):
        title = f"[{title}]"
    term += nodes.literal(text=title, ids=[label])
    facts = nodes.paragraph()
    if setting.type:
        facts += nodes.Text(setting.type)
        if setting.default is None:
            facts += nodes.Text("; required")
        elif setting.default:
            facts += nodes.Text("; default ")
            facts += nodes.literal(text=setting.default)
        facts += nodes.Text(f"; changes at a {setting.reload}" if " " not in setting.reload else "")
    else:
        facts += nodes.Text("section" if not setting.key.endswith("[]") else "section, once for each")
    body = nodes.definition("", facts, *paragraphs(setting.description))
    return nodes.definition_list_item("", term, body)


def paragraphs(text: str) -> list[nodes.Node]:
    """Return the paragraphs of a description; indented lines are literal."""
    found: list[nodes.Node] = []
    for line in text.splitlines():
        if not line.strip():
            continue
        if not line.startswith(" "):
            found.append(nodes.paragraph("", "", *_words(line)))
        elif found and isinstance(found[-1], nodes.literal_block):
            found[-1] = _literal(f"{found[-1].astext()}\n{line}")
        else:
            found.append(_literal(line))
    return found


def _literal(text: str) -> nodes.literal_block:
    block = nodes.literal_block(text, text)
    block["language"] = "text"
    return block


def _words(line: str) -> list[nodes.Node]:
    """Return a line with the parts between backticks as code."""
    parts = line.split("`")
    return [nodes.literal(text=part) if number % 2 else nodes.Text(part) for number, part in enumerate(parts) if part]
