"""Which side's gateways dial the others, as the user's client decides it."""

from __future__ import annotations

import pytest
from test_s2uc_machine import APP, UID, Rig

from scistream.protocol.errors import StreamError
from scistream.protocol.messages import CONS, PROD, Resp, Role, UpdateTargets
from scistream.s2uc.wan_dialer import choose_dialer, wan_targets

BOTH = ["accept", "dial"]
SITES: dict[Role, str] = {PROD: "lab.example:5000", CONS: "centre.example:5000"}


@pytest.mark.parametrize(
    ("prod", "cons", "wanted", "dialer"),
    [
        (BOTH, BOTH, None, CONS),
        (None, None, None, CONS),
        (["accept"], None, None, CONS),
        (None, ["dial"], None, CONS),
        (["dial"], BOTH, None, PROD),
        (BOTH, ["accept"], None, PROD),
        (["dial", "fly"], ["accept"], None, PROD),
        (BOTH, BOTH, PROD, PROD),
        (BOTH, BOTH, CONS, CONS),
    ],
)
def test_the_consumer_dials_if_it_can_and_otherwise_the_producer(
    prod: list[str] | None, cons: list[str] | None, wanted: Role | None, dialer: Role
) -> None:
    assert choose_dialer({PROD: prod, CONS: cons}, SITES, wanted) == dialer


@pytest.mark.parametrize(
    ("prod", "cons", "wanted", "remedies"),
    [
        (
            ["dial"],
            ["dial"],
            None,
            "for the consumer's gateways to dial, lab.example:5000 has to let all its gateways accept connections "
            "(`accept = true` in [wan]); or for the producer's gateways to dial, centre.example:5000 has to let all "
            "its gateways accept connections (`accept = true` in [wan])",
        ),
        (
            ["dial"],
            None,
            None,
            "for the consumer's gateways to dial, lab.example:5000 has to let all its gateways accept connections "
            "(`accept = true` in [wan]); or for the producer's gateways to dial, centre.example:5000 has to upgrade "
            "SciStream, since its version always lets the consumer's gateways dial",
        ),
        (
            BOTH,
            ["dial"],
            PROD,
            "for the producer's gateways to dial, centre.example:5000 has to let all its gateways accept connections "
            "(`accept = true` in [wan])",
        ),
        (
            [],
            ["accept"],
            CONS,
            "for the consumer's gateways to dial, lab.example:5000 has to let all its gateways accept connections "
            "(`accept = true` in [wan]) and centre.example:5000 has to let all its gateways dial (`dial = true` in "
            "[wan])",
        ),
    ],
)
def test_where_neither_can_both_facilities_are_named_with_what_is_missing(
    prod: list[str] | None, cons: list[str] | None, wanted: Role | None, remedies: str
) -> None:
    with pytest.raises(StreamError) as refused:
        choose_dialer({PROD: prod, CONS: cons}, SITES, wanted)
    assert refused.value.code == "not-authorized"
    assert refused.value.msg == (
        "the gateways of the producer's facility (lab.example:5000) and of the consumer's (centre.example:5000) cannot "
        f"connect to each other: {remedies}"
    )


@pytest.mark.parametrize("listeners", [None, [], ["c:1"], ["c:1", "c:1"], ["c:1", "c:2", "c:3"]])
def test_a_consumer_that_names_another_number_of_wan_listeners_fails_the_stream(listeners: list[str] | None) -> None:
    with pytest.raises(StreamError, match="2 channels") as failed:
        wan_targets(["p:1", "p:2"], listeners)
    assert failed.value.code == "gateway-failed"


# -- the machine


def reserved(prod: list[str] | None, cons: list[str] | None) -> Rig:
    rig = Rig()
    rig.core.sites = SITES
    rig.request()
    for role, wan in ((PROD, prod), (CONS, cons)):
        given = [f"{role.lower()}.example:5100"]
        answer = Resp(uid=UID, seq=1, state="", msg="", listeners=given, csr="<csr>", wan=wan)
        rig.machine.side_answered(role, answer)
    return rig


def updated(role: Role, listeners: list[str] | None = None) -> Resp:
    return Resp(uid=UID, seq=1, state="Streaming", msg="", listeners=["a:1"], csr="<csr>", wan_listeners=listeners)


def test_a_producer_that_dials_gets_its_targets_after_the_consumer_has_said_where_it_listens() -> None:
    rig = reserved(["dial"], BOTH)
    rig.machine.prod_lstn(APP)
    rig.news()
    rig.made()
    assert [call[1] for call in rig.news() if call[0] == "ask"] == [CONS]
    rig.machine.side_answered(CONS, updated(CONS, ["cons.example:5200"]))
    [(_, role, command)] = rig.news()
    assert isinstance(command, UpdateTargets)
    assert (role, command.wan_dialer) == (PROD, PROD)
    assert command.wan_targets == {"prod.example:5100": "cons.example:5200"}
    rig.machine.side_answered(PROD, updated(PROD))
    assert rig.state == "Streaming"


def test_a_consumer_that_names_no_wan_listeners_ends_the_stream() -> None:
    rig = reserved(["dial"], BOTH)
    rig.machine.prod_lstn(APP)
    rig.made()
    rig.machine.side_answered(CONS, updated(CONS))
    assert rig.state == "Releasing"
    assert rig.core.error is not None
    assert rig.core.error.code == "gateway-failed"


def test_facilities_that_cannot_reach_each_other_end_the_request_before_join_strings_are_given_out() -> None:
    rig = reserved(["dial"], ["dial"])
    assert rig.state == "Releasing"
    assert ("reserved",) not in rig.news()
    assert rig.core.error is not None
    assert rig.core.error.code == "not-authorized"
