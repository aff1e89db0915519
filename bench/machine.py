"""Describe the machine and the software versions of a result."""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from OpenSSL import SSL

import scistream
import twisted
from bench import congestion, peers


def describe(programs: Iterable[str], everywhere: congestion.ForAll | None = None) -> dict[str, str]:
    """Return a description of the machine: names and values.

    :param programs: the peers, whose versions are included.
    :param everywhere: the congestion control of all programs; None: the usual one of each.
    """
    usual = f"{congestion.system_default()} (the system's), of SciStream as its settings say"
    return {
        "date": time.strftime("%Y-%m-%d %H:%M %Z"),
        "processor": f"{os.cpu_count()} x {_processor()}",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB",
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "congestion control": f"{everywhere.name}, of all programs" if everywhere else usual,
        "load before": " ".join(f"{load:.2f}" for load in os.getloadavg()),
        "SciStream": f"{scistream.__version__}, Python {platform.python_version()}, Twisted {twisted.__version__}",
        "OpenSSL of SciStream": SSL.SSLeay_version(SSL.SSLEAY_VERSION).decode(),
        **{name: peers.version(name) for name in sorted(programs)},
    }


def _processor() -> str:
    with suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if found:
            return found[1]
    return platform.machine()
