"""Where the files of a user are: their configuration, and the list of their streams."""

from __future__ import annotations

from pathlib import Path

from scistream.config import user_folder


def default_config() -> Path:
    """Return ``$XDG_CONFIG_HOME/scistream/s2uc.toml``, with ``~/.config`` if the variable is not set.

    :raises ConfigError: if neither the variable nor the home folder is usable.
    """
    return user_folder("XDG_CONFIG_HOME", "~/.config") / "scistream" / "s2uc.toml"


def default_folder() -> Path:
    """Return ``$XDG_STATE_HOME/scistream/streams``, with ``~/.local/state`` if the variable is not set.

    :raises ConfigError: if neither the variable nor the home folder is usable.
    """
    return user_folder("XDG_STATE_HOME", "~/.local/state") / "scistream" / "streams"
