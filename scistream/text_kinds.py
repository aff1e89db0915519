"""The kinds of text that settings have, as patterns of JSON Schema: rates, times, sizes, addresses, files.

The patterns are for editors, and for the list of settings. The daemons parse each value and report more precisely.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

_NUMBER = r"\s*[0-9]+(\.[0-9]+)?\s*"
_RATE = _NUMBER + r"[kKmMgGtT]?([bB][iI][tT](/[sS])?|[bB][pP][sS])?\s*"
_TIME = _NUMBER + r"([mM]?[sS]|[mM]([iI][nN])?|[hH]|[dD])?\s*"
_SIZE = _NUMBER + r"[kKmMgGtT]?([iI]?[bB])?\s*"
_ADDRESS = r"(\[[^\]\s]+\]|[^:\[\]\s]+):[0-9]{1,5}"
_NETWORK = r"[0-9A-Fa-f:.]+(/[0-9]{1,3})?"
_RANGE = r"\s*[0-9]{1,5}\s*(-\s*[0-9]{1,5}\s*)?"
_PORTS = rf"{_RANGE}(,{_RANGE})*"

RATE, RATE_OR_UNLIMITED = rf"^({_RATE})$", rf"^({_RATE}|unlimited)$"
TIME, TIME_OR_NONE, TIME_OR_UNLIMITED = rf"^({_TIME})$", rf"^({_TIME})?$", rf"^({_TIME}|unlimited)$"
SIZE_OR_AUTO, SIZE_OR_UNLIMITED = rf"^({_SIZE}|auto)$", rf"^({_SIZE}|unlimited)$"
ADDRESS, ADDRESS_OR_NONE = rf"^{_ADDRESS}$", rf"^({_ADDRESS})?$"
NETWORK = rf"^{_NETWORK}$"
PORT_RANGE = r"^\s*[0-9]{1,5}\s*-\s*[0-9]{1,5}\s*$"
PORTS_OR_NONE, PORTS_OR_UNLIMITED = rf"^({_PORTS}|\s*none\s*)?$", rf"^({_PORTS}|none|unlimited)$"
FILE = r"^[^\u0000]*$"
AUTO, UNLIMITED = "^auto$", "^unlimited$"
MULTIPATH, CIPHER = "^(auto|yes|no)$", "^(aes|chacha20)$"
LOG_FORMAT, LOG_LEVEL = "^(auto|text|json|journal)$", "^(debug|info|warning|error|critical)$"

WORDS = {
    RATE: 'rate in bit/s, such as "10Gbit"',
    RATE_OR_UNLIMITED: 'rate in bit/s, such as "10Gbit", or "unlimited"',
    TIME: 'time, such as "90s", "15m", "8h" or "2d"',
    TIME_OR_NONE: 'time, such as "90s", "15m", "8h" or "2d", or ""',
    TIME_OR_UNLIMITED: 'time, such as "90s", "15m", "8h" or "2d", or "unlimited"',
    SIZE_OR_AUTO: 'size in bytes, such as "512M" or "2G" (powers of 1024), or "auto"',
    SIZE_OR_UNLIMITED: 'size in bytes, such as "512M" or "2T" (powers of 1024), or "unlimited"',
    ADDRESS: 'address, "HOST:PORT" or "[IPV6]:PORT"',
    ADDRESS_OR_NONE: 'address, "HOST:PORT" or "[IPV6]:PORT", or ""',
    NETWORK: 'network, such as "192.0.2.0/24"',
    PORT_RANGE: 'range of ports, such as "5100-5200"',
    PORTS_OR_NONE: 'ports and ranges, such as "5075, 5100-5200", "none" or ""',
    PORTS_OR_UNLIMITED: 'ports and ranges, such as "5075, 5100-5200", "none" or "unlimited"',
    FILE: "file name",
    AUTO: '"auto"',
    UNLIMITED: '"unlimited"',
    MULTIPATH: '"auto", "yes" or "no"',
    CIPHER: '"aes" or "chacha20"',
    LOG_FORMAT: '"auto", "text", "json" or "journal"',
    LOG_LEVEL: '"debug", "info", "warning", "error" or "critical"',
}
"""What each pattern means, in the list of settings."""

RateText = Annotated[str, Meta(pattern=RATE)]
RateOrUnlimited = Annotated[str, Meta(pattern=RATE_OR_UNLIMITED)]
TimeText = Annotated[str, Meta(pattern=TIME)]
TimeOrNone = Annotated[str, Meta(pattern=TIME_OR_NONE)]
TimeOrUnlimited = Annotated[str, Meta(pattern=TIME_OR_UNLIMITED)]
SizeOrAuto = Annotated[str, Meta(pattern=SIZE_OR_AUTO)]
SizeOrUnlimited = Annotated[str, Meta(pattern=SIZE_OR_UNLIMITED)]
AddressText = Annotated[str, Meta(pattern=ADDRESS)]
AddressOrNone = Annotated[str, Meta(pattern=ADDRESS_OR_NONE)]
NetworkText = Annotated[str, Meta(pattern=NETWORK)]
PortRangeText = Annotated[str, Meta(pattern=PORT_RANGE)]
PortsOrNone = Annotated[str, Meta(pattern=PORTS_OR_NONE)]
PortsOrUnlimited = Annotated[str, Meta(pattern=PORTS_OR_UNLIMITED)]
FileText = Annotated[str, Meta(pattern=FILE)]
Auto = Annotated[str, Meta(pattern=AUTO)]
Unlimited = Annotated[str, Meta(pattern=UNLIMITED)]
MultipathText = Annotated[str, Meta(pattern=MULTIPATH)]
CipherText = Annotated[str, Meta(pattern=CIPHER)]
LogFormatText = Annotated[str, Meta(pattern=LOG_FORMAT)]
LogLevelText = Annotated[str, Meta(pattern=LOG_LEVEL)]
