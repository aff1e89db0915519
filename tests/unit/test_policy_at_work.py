"""A policy at work in memory: a refused command changes nothing, and an allowed one works as without a policy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from policy_lab import ADA, BOB, IMPOSTOR, LAB, OPERATOR, OTHER, UIDS, Lab, a_req, everything, rule
from twisted.logger import formatEvent, globalLogPublisher

from scistream.links.tls_links import PLAIN_IDENTITY
from scistream.pki.authority import init_authority
from scistream.protocol.address import Address
from scistream.protocol.errors import StreamError
from scistream.protocol.join_string import hash_app_key, new_app_key
from scistream.protocol.messages import CONS, PROD, UNSENT, Command, Hello, Rel, Req, Status, UpdateTargets
from scistream.s2cs.in_use import OwnerUse
from scistream.s2cs.policy.authorizer import Authorizer, identity_of, owner_of, policy_of
from scistream.s2cs.policy.file import Policy
from scistream.s2cs.settings import S2CSConfig
from scistream.s2ds.elements.shared_figures import TO_CONSUMER
from scistream.s2uc.client import Stream
from scistream.tls.verify import Identity
from support.memory_facilities import CONS_S2CS, DETECTOR, PROD_PORT, PROD_S2CS
from support.memory_network import HOST


def life(admission_controller: Authorizer, owner: str, request: Req) -> float:
    """Return the seconds that a new stream may live if its owner has no other one."""
    grant = admission_controller.authorise(request, owner, use=OwnerUse())
    grant.check()
    return grant.life


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path)
    yield lab
    lab.world.close()


ADMINISTRATORS = f'[[administrators]]\nissuer = "{LAB}"\nidentities = ["operator@lab.example"]\n'


# -- REQ


@pytest.mark.parametrize(
    ("limits", "allowed", "refused", "words"),
    [
        ({"roles": ["PROD"]}, {}, None, ""),
        ({"roles": ["CONS"]}, None, {}, "allows the role CONS, but PROD was requested"),
        (
            {"rate": "200Mbit"},
            {"rate": 200.0},
            {"rate": 201.0},
            "allows at most 200 Mbit/s per stream, but 201 was requested",
        ),
        (
            {"num_conn": 2},
            {"num_conn": 2},
            {"num_conn": 3},
            "allows at most 2 channels per stream, but 3 were requested",
        ),
        ({"expires": "2h"}, {"expires": 7200.0}, {"expires": 7260.0}, "a life of at most 2h, but 121m was requested"),
        ({"total_rate": "1Gbit"}, {"rate": 1000.0}, {"rate": 1001.0}, "at most 1000 Mbit/s over all streams"),
    ],
)
def test_a_request_over_a_limit_is_refused_by_the_name_of_its_rule(
    lab: Lab, limits: dict[str, Any], allowed: dict[str, Any] | None, refused: dict[str, Any] | None, words: str
) -> None:
    lab.has(rule("bob@lab.example", name="first"), rule(**limits))
    if refused is not None:
        said = lab.refusal(**refused)
        assert "producer side: rule 2 `beamline` allows" in said
        assert words in said
    if allowed is not None:
        stream = lab.request(**allowed)
        lab.world.result(stream.release().deferred)
    assert lab.world.both_are_empty()


def test_a_user_without_a_rule_is_refused(lab: Lab) -> None:
    lab.has(rule())
    for stranger in (BOB, IMPOSTOR):
        rows = lab.control.store.load()
        said = lab.refusal(stranger)
        assert "no rule of this facility's policy is for" in said
        assert stranger.name in said
        assert lab.control.store.load() == rows, "not even the release of what was refused is remembered"
    lab.request(ADA)


def test_without_a_policy_every_user_may_ask(lab: Lab) -> None:
    assert lab.control.authorizer.policy is None
    lab.request(IMPOSTOR)


def test_streams_at_once_are_counted_by_identity_and_come_back_with_a_release(lab: Lab) -> None:
    lab.has(rule("*@lab.example", streams=2))
    first, _ = lab.request(), lab.request(BOB)
    lab.request()
    assert "rule 1 `beamline` allows at most 2 streams at once, and 2 exist: release one first" in lab.refusal()
    lab.world.result(first.release().deferred)
    lab.request()


def test_both_ends_at_one_facility_are_one_stream_and_two_rates(lab: Lab) -> None:
    lab.has(rule(streams=1, total_rate="199Mbit"))
    assert "with the existing ones 200 was requested" in lab.refusal(cons=PROD_S2CS)
    lab.has(rule(streams=1, total_rate="200Mbit"))
    lab.request(cons=PROD_S2CS)
    assert "at most 1 streams at once" in lab.refusal(cons=PROD_S2CS)


def test_rates_of_live_streams_add_up(lab: Lab) -> None:
    lab.has(rule(total_rate="300Mbit"))
    first = lab.request(rate=200.0)
    assert "with the existing ones 301 was requested" in lab.refusal(rate=101.0)
    lab.request(rate=100.0)
    lab.world.result(first.release().deferred)
    lab.request(rate=200.0)


def test_a_request_that_does_not_say_how_long_lives_no_longer_than_its_rule_allows(lab: Lab) -> None:
    lab.has(rule(expires="2h"), rule("bob@lab.example", name="free"))
    for identity, uid, life in ((ADA, UIDS[0], 7200.0), (BOB, UIDS[1], 86400.0)):
        lab.say(identity, a_req(uid))
        assert lab.control.streams[uid, PROD].record.life == life


def test_the_facility_s_own_bound_of_life_stays(lab: Lab) -> None:
    lab.has(rule(expires="30d"))
    assert "this facility allows at most 604800 s" in lab.refusal(expires=8 * 86400.0)
    lab.request(expires=7 * 86400.0)


# -- targets


def test_a_hello_from_elsewhere_than_the_rule_s_targets_is_refused_and_changes_nothing(lab: Lab) -> None:
    lab.has(rule(targets=[f"{HOST}/32:7000-7001"]))
    stream = lab.request()
    for listeners in [(Address(HOST, 7002),), (DETECTOR, Address("192.0.2.1", 7000))]:
        intruder = lab.world.application(stream.join[PROD], "program", listeners=listeners)
        assert lab.world.result(intruder.finished) == 1
        assert intruder.error is not None
        assert intruder.error.code == "target-refused"
        assert (
            f"rule 1 `beamline` allows the targets {HOST}/32:7000-7001, but not {listeners[-1]}" in intruder.error.msg
        )
        assert lab.world.state("s2cs", PROD) == "listening"
        assert lab.world.network.programs == []

    lab.world.application(stream.join[PROD], "program", listeners=(DETECTOR,))
    lab.world.result(stream.provisioned().deferred)


def test_targets_that_a_later_policy_forbids_are_refused_at_the_update(lab: Lab) -> None:
    lab.has(rule())
    stream = lab.request()
    lab.world.application(stream.join[PROD], "program", listeners=(DETECTOR,))
    lab.world.result(stream.provisioned().deferred)
    command = UpdateTargets(
        uid=stream.uid,
        role=PROD,
        seq=UNSENT,
        generation=2,
        connection_map={f"{HOST}:{port}": str(DETECTOR) for port in lab.world.prod.listening()},
        data_conn_key="none",
    )
    lab.has(rule(targets=["192.0.2.0/24"]), rule("*@lab.example", name="everybody"), ADMINISTRATORS)
    for whoever in (ADA, OPERATOR):
        refused = lab.refused(whoever, command)
        assert refused.code == "target-refused"
        assert "rule 1 `beamline` allows the targets 192.0.2.0/24" in refused.msg, "the owner's, whoever asks"
    assert lab.refused(BOB, command).code == "unknown-uid"
    assert lab.control.streams[stream.uid, PROD].record.generation == 1
    assert lab.world.both_are("streaming")
    lab.has(rule())
    assert lab.refused(ADA, command).code != "target-refused", "the control: it comes as far as the gateway"


# -- whose streams


def test_a_release_of_what_nobody_has_asked_for_bars_it_for_that_owner_alone(lab: Lab) -> None:
    lab.has(rule("*@lab.example"))
    assert lab.refused(BOB, Rel(uid=UIDS[0], role=PROD, seq=UNSENT)).code == "unknown-uid"
    assert lab.refused(BOB, a_req(UIDS[0])).code == "wrong-state"
    assert lab.say(ADA, a_req(UIDS[0])).state == "Listening"
    assert lab.refused(BOB, a_req(UIDS[1], rate=1e6)).code == lab.refused(BOB, a_req(UIDS[0], CONS, rate=1e6)).code


def of_all_kinds(uid: str) -> list[Command]:
    """All that a user may say of a stream that is there."""
    targets = {f"{HOST}:{port}": str(DETECTOR) for port in (PROD_PORT, 1)}
    update = {"generation": 9, "connection_map": targets, "data_conn_key": "none"}
    return [
        *(Status(uid=uid, role=role, seq=UNSENT) for role in (None, PROD, CONS)),
        *(UpdateTargets(uid=uid, role=role, seq=UNSENT, **update) for role in (PROD, CONS)),
        *(Rel(uid=uid, role=role, seq=UNSENT) for role in (PROD, CONS)),
        *(a_req(uid, role) for role in (PROD, CONS)),  # after a release, which bars it
    ]


@pytest.mark.parametrize("state", ["listening", "streaming", "released"])
@pytest.mark.parametrize("number", range(len(of_all_kinds(UIDS[0]))))
def test_a_user_gets_the_same_answer_for_another_user_s_stream_and_for_a_missing_one(
    lab: Lab, state: str, number: int
) -> None:
    lab.has(rule("*@lab.example"))
    stream = lab.request()
    if state == "streaming":
        lab.world.application(stream.join[PROD], "program")
        lab.world.result(stream.provisioned().deferred)
    elif state == "released":
        lab.world.result(stream.release().deferred)
    heard = []
    for uid in (stream.uid, UIDS[0]):
        command = of_all_kinds(uid)[number]
        if isinstance(command, Req):
            lab.refused(BOB, Rel(uid=uid, role=command.role, seq=UNSENT))
        error = lab.refused(BOB, command)
        heard.append((error.code, error.msg.replace(uid, "UID")))
    assert heard[0] == heard[1]
    assert lab.world.state("s2cs", PROD, stream.uid) == state


def test_a_client_never_reports_another_user_s_stream_as_released_and_forgets_nothing(lab: Lab) -> None:
    lab.has(rule("*@lab.example"))
    uid = lab.request().uid
    bob = lab.client(BOB).remembered(uid, prod=PROD_S2CS, cons=CONS_S2CS)
    released: list[str] = []
    bob._effects.on_released = lambda: released.append(uid)
    lab.world.result(bob.release().deferred)
    assert set(bob.unknown_at) == {PROD, CONS}
    assert lab.world.both_are("listening")
    assert released == []


def test_the_same_address_from_another_authority_can_neither_see_nor_end_a_stream(lab: Lab) -> None:
    lab.has(rule(), rule(issuer=OTHER, name="visitor"))
    stream = lab.request()
    assert [one.uid for one in lab.say(ADA, everything()).streams or []] == [stream.uid]
    assert lab.say(IMPOSTOR, everything()).streams == []
    for command in (everything(stream.uid), Rel(uid=stream.uid, role=PROD, seq=UNSENT)):
        assert lab.refused(IMPOSTOR, command).code == "unknown-uid"
    assert lab.refused(IMPOSTOR, a_req(stream.uid)).code == "wrong-state", "it has released that uid for itself"
    assert lab.say(IMPOSTOR, a_req(stream.uid, CONS)).state == "Listening"
    for identity, role in ((ADA, PROD), (IMPOSTOR, CONS)):
        seen = lab.say(identity, everything(stream.uid)).streams or []
        assert [(one.uid, one.role) for one in seen] == [(stream.uid, role)], "each owner sees her own"
    assert lab.world.state("s2cs", PROD) == "listening"
    lab.world.result(stream.release().deferred)


def test_the_domain_of_an_address_is_one_owner_s_however_it_is_written(lab: Lab) -> None:
    lab.has(rule(streams=1))
    stream = lab.request()
    shouting = Identity(LAB, "ada@LAB.example")
    assert [one.uid for one in lab.say(shouting, everything()).streams or []] == [stream.uid]
    assert "at most 1 streams" in lab.refusal(shouting)
    assert lab.say(Identity(LAB, "Ada@lab.example"), everything()).streams == [], "before the @ it matters"


def test_an_administrator_sees_and_releases_a_stream_and_its_owner_is_told_who_did_it(lab: Lab) -> None:
    lab.has(rule("*@lab.example"), ADMINISTRATORS)
    stream = lab.request()
    bobs = lab.request(BOB)
    lab.world.application(stream.join[PROD], "detector")
    lab.world.result(stream.provisioned().deferred)
    ended = stream.ended().deferred

    seen = lab.say(OPERATOR, everything()).streams or []
    assert {(one.uid, one.owner) for one in seen} == {(stream.uid, owner_of(ADA)), (bobs.uid, owner_of(BOB))}
    assert [one.uid for one in lab.say(BOB, everything()).streams or []] == [bobs.uid]
    assert lab.refused(BOB, Rel(uid=stream.uid, role=PROD, seq=UNSENT)).code == "unknown-uid"
    assert lab.refused(BOB, everything(stream.uid)).code == "unknown-uid"

    released = lab.world.result(lab.client(OPERATOR).release_at(PROD_S2CS, stream.uid).deferred)
    assert [(one.uid, one.role, one.state) for one in released] == [(stream.uid, PROD, "Streaming")]
    error = lab.world.refusal(ended)
    assert "released by operator@lab.example, an administrator of this facility" in error.msg
    assert lab.world.state("s2cs", PROD, stream.uid) == lab.world.state("s2cs", CONS, stream.uid) == "released"
    over = lab.control.store.find((stream.uid, PROD))
    last = over.last_error if over is not None else None
    assert last is not None
    assert "operator@lab.example" in last.msg
    assert lab.world.state("s2cs", PROD, bobs.uid) == "listening"


def test_an_application_is_told_that_an_administrator_released_its_stream(lab: Lab) -> None:
    lab.has(rule(), ADMINISTRATORS)
    stream = lab.request(cons=PROD_S2CS)
    analysis = lab.world.application(stream.join[CONS])
    lab.world.network.until(lambda: lab.world.state("app", CONS) == "waiting")
    released = lab.world.result(lab.client(OPERATOR).release_at(PROD_S2CS, stream.uid).deferred)
    assert [one.role for one in released] == [CONS, PROD]
    assert lab.world.result(analysis.finished) == 1
    assert analysis.error is not None
    assert "released by operator@lab.example" in analysis.error.msg


def test_an_administrator_may_ask_for_no_stream_without_a_rule(lab: Lab) -> None:
    lab.has(rule(), ADMINISTRATORS)
    assert "no rule" in lab.refusal(OPERATOR)
    lab.request(ADA)


def test_all_streams_are_seen_page_by_page(lab: Lab) -> None:
    lab.has(rule("*@lab.example"), ADMINISTRATORS)
    lab.world.network.run(1.0)
    for uid in UIDS[:8]:
        lab.say(ADA, a_req(uid))
    answer = lab.say(OPERATOR, Status(uid=None, role=None, seq=UNSENT, limit=3))
    assert ([one.uid for one in answer.streams or []], answer.more) == (UIDS[:3], f"{UIDS[2]}/PROD")
    seen = lab.world.result(lab.client(OPERATOR).streams_at(PROD_S2CS).deferred)
    assert [one.uid for one in seen] == UIDS[:8]
    assert lab.world.result(lab.client(BOB).streams_at(PROD_S2CS).deferred) == []


# -- a policy that changes


def test_a_stream_that_a_later_policy_would_not_allow_goes_on_and_can_be_seen_and_released(lab: Lab) -> None:
    lab.has(rule("*@lab.example"))
    request = a_req()
    assert lab.say(ADA, request).state == "Listening"
    stream = lab.request()
    detector = lab.world.application(stream.join[PROD], "detector")
    lab.world.result(stream.provisioned().deferred)

    lab.has(rule("bob@lab.example"))
    lab.world.network.run(120.0)
    assert len(lab.world.prod.listening()) == 1, "the gateway goes on forwarding"
    assert lab.world.state("app", PROD) == "serving"
    assert "no rule" in lab.refused(ADA, request).msg
    update = UpdateTargets(
        uid=stream.uid, role=PROD, seq=UNSENT, generation=9, connection_map={"a:1": "b:1"}, data_conn_key="none"
    )
    assert lab.refused(ADA, update).code == "not-authorized"
    late = lab.world.application(stream.join[PROD], "detector", listeners=(Address(HOST, 7077),))
    assert lab.world.result(late.finished) == 1
    assert late.error is not None
    assert late.error.code == "not-authorized"
    lab.world.network.sever(PROD_PORT)
    lab.world.network.run(5.0)
    assert detector.error is None, "the Hello that it repeats is no news"

    assert len(lab.say(ADA, everything()).streams or []) == 2
    assert lab.world.state("s2cs", PROD, stream.uid) == "streaming"
    lab.world.result(stream.release().deferred)
    assert lab.say(ADA, Rel(uid=request.uid, role=PROD, seq=UNSENT)).state == "Released"
    assert lab.world.both_are_empty()


# -- bytes of a day


def carry(lab: Lab, stream: Stream, count: int) -> None:
    """Let the producer's gateway forward `count` bytes to the consumer, and the S2CS learn of it."""
    elements = lab.world.prod.gateways[0].elements
    [slot] = elements._streams[stream.uid, PROD].start.slots.values()
    elements._figures.words[elements._figures.row(slot, 0) + TO_CONSUMER] += count
    lab.world.network.run(16.0)


def breaks(lab: Lab, stream: Stream, seconds: float) -> None:
    """Let all WAN connections of the producer's side fail for `seconds`."""
    holding = lab.world.prod.gateways[0]._streams[stream.uid, PROD]
    for _ in range(int(seconds // 20)):
        holding.outages.failed(0, "the other gateway was not reached", 0)
        lab.world.network.run(20.0)


@pytest.mark.parametrize("setting", ["", "10min"])
def test_a_stream_that_is_broken_for_long_is_released_if_the_facility_says_so(lab: Lab, setting: str) -> None:
    lab.control.config = msgspec.structs.replace(lab.control.config, release_broken_after=setting)
    stream = lab.request()
    lab.world.application(stream.join[PROD], "program")
    lab.world.result(stream.provisioned().deferred)
    ended = stream.ended().deferred
    breaks(lab, stream, 300.0)
    carry(lab, stream, 1000)
    breaks(lab, stream, 500.0)
    assert lab.world.state("s2cs", PROD) == "streaming", "it has carried something"
    breaks(lab, stream, 200.0)
    assert lab.world.state("s2cs", PROD) == ("released" if setting else "streaming")
    if setting:
        error = lab.world.refusal(ended)
        assert error.code == "timeout"
        assert "producer side: channel 0 was broken and the stream carried no bytes" in error.msg
        assert "the other gateway was not reached" in error.msg
    else:
        lab.world.result(stream.release().deferred)
        lab.world.result(ended)


def test_a_stream_is_not_released_as_broken_while_one_of_its_gateways_is_away(tmp_path: Path) -> None:
    lab = Lab(tmp_path, gateways=2)
    try:
        lab.control.config = msgspec.structs.replace(lab.control.config, release_broken_after="5min")
        stream = lab.request(num_conn=2)
        lab.world.application(stream.join[PROD], "program")
        lab.world.result(stream.provisioned().deferred)
        assert len(lab.control.streams[stream.uid, PROD].record.plan) == 2
        away = lab.world.prod.gateway_ports[1]
        listener = lab.world.network.close_listener(away)
        lab.world.network.sever(away)
        breaks(lab, stream, 600.0)
        assert lab.world.state("s2cs", PROD) == "streaming", "the other gateway may carry a lot"
        lab.world.network.listeners[away] = listener
        breaks(lab, stream, 60.0)
        assert lab.world.state("s2cs", PROD) == "released"
        lab.world.network.run(5.0)
    finally:
        lab.world.close()


def test_a_used_up_day_ends_the_streams_of_its_owner_and_refuses_new_ones(lab: Lab) -> None:
    lab.has(rule("*@lab.example", bytes_per_day="1M"))
    first, second = lab.request(), lab.request()
    bobs = lab.request(BOB)
    ended = [one.ended().deferred for one in (first, second)]
    carry(lab, first, 2**20 - 10)
    carry(lab, second, 10)
    assert lab.control.ledger.usage_today(owner_of(ADA)) == 2**20
    assert lab.world.state("s2cs", PROD, first.uid) == lab.world.state("s2cs", PROD, second.uid) == "listening"
    assert "rule 1 `beamline` allows 1M per day, and 1M were carried today" in lab.refusal()

    carry(lab, second, 1)
    for one in ended:
        error = lab.world.refusal(one)
        assert error.code == "not-authorized"
        assert "rule 1 `beamline` allows 1M per day" in error.msg
    for uid in (first.uid, second.uid):
        assert lab.world.state("s2cs", PROD, uid) == lab.world.state("s2cs", CONS, uid) == "released"
    assert "1M per day" in lab.refusal(), "what released streams have carried still counts"
    assert lab.world.state("s2cs", PROD, bobs.uid) == "listening"
    lab.request(BOB)


# -- owners


@pytest.mark.parametrize(
    "identity", [ADA, PLAIN_IDENTITY, Identity(LAB, "urn:x (y) z"), Identity(LAB, "insecure:loopback")]
)
def test_an_owner_and_an_identity_are_one_and_the_same(identity: Identity) -> None:
    assert identity_of(owner_of(identity)) == identity


def test_at_an_insecure_s2cs_everybody_is_one_identity_that_a_rule_may_name(tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text(rule("insecure:loopback", "none", rate="2Mbit"))
    config = S2CSConfig(gateways=[], insecure=True, policy="policy.toml")
    admission_controller = Authorizer(config, policy_of(config, tmp_path / "s2cs.toml"), lambda owner: 0)
    assert life(admission_controller, owner_of(PLAIN_IDENTITY), a_req(rate=2.0)) == 86400.0
    with pytest.raises(StreamError, match="rule 1 `beamline`"):
        life(admission_controller, owner_of(PLAIN_IDENTITY), a_req(rate=3.0))


def test_an_issuer_that_the_facility_does_not_trust_is_named_in_the_log(tmp_path: Path) -> None:
    trusted = init_authority(tmp_path / "pki", "The lab").certificate
    (tmp_path / "policy.toml").write_text(rule(issuer="pki/ca.pem") + rule(issuer=OTHER, name="visitors"))
    config = S2CSConfig(gateways=[], authorities=[str(trusted)], policy="policy.toml")
    said: list[str] = []

    def hear(event: Any) -> None:
        said.append(formatEvent(event))

    globalLogPublisher.addObserver(hear)
    try:
        policy_of(config, tmp_path / "s2cs.toml")
    finally:
        globalLogPublisher.removeObserver(hear)
    [warning] = [line for line in said if "is not in `authorities`" in line]
    assert OTHER in warning


def test_without_a_policy_the_facility_s_own_bounds_hold() -> None:
    admission_controller = Authorizer(
        S2CSConfig(gateways=[], longest_expires="1h", expires="30m"), None, lambda owner: 2**60
    )
    assert life(admission_controller, "ada", a_req()) == 1800.0
    assert life(admission_controller, "ada", a_req(expires=3600.0)) == 3600.0
    with pytest.raises(StreamError, match="at most 3600 s"):
        life(admission_controller, "ada", a_req(expires=3601.0))


class Counting:
    """A policy that counts what it is asked."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.asked: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        self.asked[name] += 1
        return getattr(self._policy, name)


def test_each_command_asks_the_policy_once(lab: Lab) -> None:
    lab.has(rule(targets=[f"{HOST}/32"]), ADMINISTRATORS)
    assert lab.control.authorizer.policy is not None
    counting = Counting(lab.control.authorizer.policy)
    lab.control.authorizer.policy = counting
    app_key = new_app_key()
    request = a_req(app_key_hash=hash_app_key(app_key))
    near, far = str(DETECTOR), "127.0.0.1:7001"
    hello = Hello(
        uid=UIDS[0],
        role=PROD,
        seq=UNSENT,
        app_key=app_key,
        listeners=[near],
        other_addresses={near: [f"192.0.2.{number}:7000" for number in range(1, 7)] + [far]},
    )

    def asked_by(command: Command, identity: Identity = ADA) -> dict[str, int]:
        counting.asked.clear()
        answered: list[object] = []
        lab.link(identity).ask(command, 30.0).addBoth(answered.append)
        lab.world.network.until(lambda: bool(answered))
        return dict(counting.asked)

    rule_alone, both = {"rule_for": 1}, {"rule_for": 1, "is_administrator": 1}
    assert asked_by(request) == rule_alone
    assert asked_by(request) == both
    assert asked_by(hello) == rule_alone
    listeners = lab.control.streams[UIDS[0], PROD].record.listeners.values()
    update = UpdateTargets(
        uid=UIDS[0],
        role=PROD,
        seq=UNSENT,
        generation=1,
        connection_map=dict.fromkeys(listeners, near),
        data_conn_key="not a bundle",
    )
    assert asked_by(update) == both
    assert asked_by(update, BOB) == both
    for uid in (None, UIDS[0]):
        assert asked_by(everything(uid), OPERATOR) == {"is_administrator": 1}
    assert asked_by(Rel(uid=UIDS[1], role=PROD, seq=UNSENT)) == both
    assert asked_by(Rel(uid=UIDS[0], role=PROD, seq=UNSENT)) == both
