"""Register `twistd s2cs` and `twistd s2ds`. Twisted imports this module to list plugins, so it imports little."""

from twisted.application.service import ServiceMaker

s2cs = ServiceMaker(
    "SciStream S2CS",
    "scistream.s2cs.tap",
    "the control server of a facility (SciStream)",
    "s2cs",
)

s2ds = ServiceMaker(
    "SciStream S2DS",
    "scistream.s2ds.tap",
    "the data server of a gateway node (SciStream)",
    "s2ds",
)
