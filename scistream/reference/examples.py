"""The example files in conf/, which the installed package contains."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from scistream.config import ConfigError

CONF = Path(__file__).parents[1] / "conf"
"""The folder of the examples. In a checkout it is a link to ``conf/``."""

_MOST_NAMED = 5


def example_files() -> Iterator[tuple[Path, bytes]]:
    """Yield the name of each example file and each schema, relative to the folder of the examples, and its content."""
    for file in sorted(CONF.rglob("*")):
        if file.is_file():
            yield file.relative_to(CONF), file.read_bytes()
    from scistream.reference.schema import schema_files  # it reads the examples itself

    yield from schema_files()


def write_examples(folder: Path) -> list[Path]:
    """Write the example files into a folder, which is created if needed. Return the files that were written.

    :raises ConfigError: if one of the files exists already, in which case nothing is written, or if one cannot be
        written.
    """
    examples = [(folder / name, content) for name, content in example_files()]
    present = [file for file, _ in examples if file.exists() or file.is_symlink()]
    if present:
        more = f" and {len(present) - _MOST_NAMED} more" if len(present) > _MOST_NAMED else ""
        named = ", ".join(map(str, present[:_MOST_NAMED]))
        raise ConfigError(f"{named}{more} would be overwritten: name a new folder")
    try:
        for file, content in examples:
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("xb") as new:
                new.write(content)
    except OSError as problem:
        raise ConfigError(f"{problem.filename or folder}: cannot be written: {problem.strerror}") from None
    return [file for file, _ in examples]
