"""The pages about commands and codes, made from the code: two directives for Sphinx."""

from __future__ import annotations

from importlib import import_module

from command_tree import PROGRAMS, Command, every_command
from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from scistream.explanations import EXPLANATIONS, KINDS


class Commands(SphinxDirective):
    """``.. program-help:: s2uc`` describes a program and all its commands, each in a section of its own."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Make the sections; the page is built again when the module changes."""
        name = self.arguments[0]
        self.env.note_dependency(str(import_module(PROGRAMS[name]).__file__))
        return [_section(command) for command in every_command(name)]


def _section(command: Command) -> nodes.section:
    section = nodes.section(ids=[nodes.make_id(command.path)])
    section += nodes.title("", "", nodes.literal("", command.path))
    section += nodes.literal_block("", f"{command.path} {command.usage}")
    for is_kept, text in command.paragraphs:
        section += nodes.literal_block("", text) if is_kept else _paragraph(text)
    if command.options:
        items = nodes.definition_list()
        for option, meaning in command.options:
            items += nodes.definition_list_item(
                "", nodes.term("", "", nodes.literal("", option)), nodes.definition("", _paragraph(meaning))
            )
        section += items
    return section


def _paragraph(text: str) -> nodes.paragraph:
    """Return a paragraph in which text between back quotes is code."""
    paragraph = nodes.paragraph()
    for number, part in enumerate(text.split("`")):
        if part:
            paragraph += nodes.literal("", part) if number % 2 else nodes.Text(part)
    return paragraph


class Explanations(SphinxDirective):
    """``.. explanations:: error`` lists the codes of one kind, as `s2uc explain` explains them."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Make the list."""
        kind = self.arguments[0]
        assert kind in KINDS, kind
        items = nodes.definition_list()
        for one in EXPLANATIONS.values():
            if one.kind == kind:
                meaning, act = _paragraph(one.meaning), _paragraph(f"Who acts: {one.who}.")
                definition = nodes.definition("", meaning, act, _paragraph(one.remedy))
                items += nodes.definition_list_item("", nodes.term("", "", nodes.literal("", one.code)), definition)
        return [items]
