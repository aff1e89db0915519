"""The commands `scistream examples` and `scistream schema`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from scistream.cli_support import refuse
from scistream.config import ConfigError
from scistream.reference.examples import write_examples

NAMES = ("policy", "s2cs", "s2ds", "s2uc")
"""The configuration files that have a schema."""


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the names of the files as one JSON object.")
def examples(folder: Path, as_json: bool) -> None:
    """Write the commented example files into DIR.

    They are configuration files with every setting, systemd units, and others.

    The JSON Schemas of the configuration files are in DIR/schemas, for editors. The folder is created if needed. If one
    of the files exists already, nothing is written, and the exit status is 2.
    """
    try:
        written = write_examples(folder)
    except ConfigError as problem:
        refuse(problem)
    if as_json:
        click.echo(json.dumps({"files": list(map(str, written))}))
    for file in written if not as_json else ():
        click.echo(str(file))
    sys.exit(0)


@click.command()
@click.argument("name", metavar="FILE", type=click.Choice(NAMES))
def schema(name: str) -> None:
    """Print the JSON Schema of a configuration file: s2cs, s2ds, s2uc or policy.

    Editors that know it complete the names of settings, show their descriptions, and mark mistakes. With taplo, such as
    in VS Code with "Even Better TOML", begin the configuration file with the line
    `#:schema s2cs.schema.json` after `scistream schema s2cs > s2cs.schema.json`.
    """
    from scistream.reference.schema import schema_text  # slow to import, and other commands do not need it
    from scistream.reference.settings_list import FILES

    click.echo(schema_text(FILES[name]), nl=False)
