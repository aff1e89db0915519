"""What each code means that users meet, who acts on it, and what to do: for `s2uc explain`, and for failures in JSON.

The page `docs/reference/errors.rst` is made of these texts, too. Tests hold them to the codes in the code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

Kind = Literal["error", "command", "status", "reset"]

KINDS: Mapping[Kind, str] = {
    "error": "error code of the protocol, from a facility or from s2uc itself",
    "command": "error code of the commands themselves; no facility has sent it",
    "status": "exit status of the commands",
    "reset": "cause of reset connections, as `s2uc status UID` and `s2uc watch` show it",
}


class Explanation(NamedTuple):
    """The explanation of one code.

    :ivar code: as users meet it: ``no-ports``, or ``2`` for an exit status.
    :ivar meaning: one or more sentences.
    :ivar who: who has to act.
    :ivar remedy: what to do, in one or more sentences.
    """

    kind: Kind
    code: str
    meaning: str
    who: str
    remedy: str


_ALL = (
    # -- the protocol
    Explanation(
        "error",
        "bad-message",
        "A value or a message is not valid. If you called the library or wrote a message yourself, the sentence names "
        "the argument. Between released versions of SciStream it does not occur.",
        "you, if an argument is named; otherwise the developers of SciStream",
        "Correct the value that the sentence names. If it names none of yours, report it with the versions of both "
        "sides.",
    ),
    Explanation(
        "error",
        "unknown-uid",
        "The facility has no stream of yours with this uid. It was never requested there, or it ended more than a day "
        "ago, or it belongs to another certificate.",
        "you",
        "Check the uid with `s2uc list`. If you requested the stream with another certificate, use that one. "
        "`s2uc forget UID` removes a stream from your list that no facility knows.",
    ),
    Explanation(
        "error",
        "uid-in-use",
        "A stream with this uid exists already and was requested with other values, or by somebody else.",
        "you",
        "Leave out --uid, so that a new one is chosen, or end the earlier stream with `s2uc release UID`.",
    ),
    Explanation(
        "error",
        "not-authenticated",
        "One side of a link could not prove who it is: a certificate is missing, has expired or was revoked, was "
        "issued by an authority that the other side does not trust, or carries another name. The key of a join string "
        "may be wrong, too.",
        "you, for your own certificate, your list of authorities, or a join string; otherwise the facility's operator",
        "Run `scistream pki show` on your certificate and on each authority in s2uc.toml, and compare them with what "
        "the facility told you. For an application, take the join string that `s2uc request` printed for that side.",
    ),
    Explanation(
        "error",
        "not-authorized",
        "The facility knows who you are, and its policy or its networks do not allow this.",
        "the facility's operator, who decides; you, if you can ask for less",
        "Ask for what the sentence allows (rate, channels, time, ports), or ask the operator for a rule. The operator "
        "sees the reason with `scistream policy check policy.toml --as YOU`.",
    ),
    Explanation(
        "error",
        "wrong-state",
        "The stream is in a state in which this is not possible; most often it has been released, or has ended.",
        "you",
        "Look at the stream with `s2uc status UID`. A stream that is over cannot be continued: request a new one.",
    ),
    Explanation(
        "error",
        "no-ports",
        "The gateways of the facility have too few free ports for the channels, or the ports that were asked for by "
        "number are in use or not for choice.",
        "you; the facility's operator, if it happens often",
        "Ask for fewer channels (--num-conn) or other ports (--listen-port), or wait until other streams end. The "
        "operator can widen `ports` or `chosen_ports` in s2ds.toml.",
    ),
    Explanation(
        "error",
        "no-capacity",
        "The gateways of the facility have too little of the requested rate free, the facility takes nothing new at "
        "the moment, or you have as many streams or as much rate as one user may have.",
        "you; the facility's operator, if the sentence speaks of its store or of a limit",
        "Ask for a lower --rate, or wait until other streams end. The operator sees how much is reserved with "
        "`s2uc list --at` as an administrator.",
    ),
    Explanation(
        "error",
        "target-refused",
        "The address on which the producer's program listens cannot be used: it is outside the facility's "
        "application networks, is the gateway itself, or is of a kind that the gateway does not support.",
        "who starts the producer; the facility's operator, if the address is right",
        "Start `appctrl prod` with an address in the networks that the sentence names. The operator sets them as "
        "`app_networks` in s2ds.toml. The stream waits for a right address.",
    ),
    Explanation(
        "error",
        "gateway-failed",
        "A gateway or a control server does not answer, has failed, or has lost the stream.",
        "the facility's operator",
        "Tell the operator of the facility that the sentence names, with the uid and the time; its log and audit trail "
        "say more. Request a new stream when it is mended.",
    ),
    Explanation(
        "error",
        "timeout",
        "Something did not happen in time: a facility did not answer, or no application joined the stream.",
        "you, if an application was not started or an address is wrong; otherwise the facility's operator",
        "The sentence says what was waited for. Check the address of the facility (`s2uc facilities`), start the "
        "missing application, or allow more time (--timeout).",
    ),
    Explanation(
        "error",
        "expired",
        "The stream has ended because the time for which it was requested or granted is over.",
        "you",
        "Request a new stream, with a longer --expires if the facilities grant it.",
    ),
    Explanation(
        "error",
        "released",
        "Somebody has released the stream: you, an administrator of a facility, or a program of yours.",
        "you",
        "If it was not you, ask the operators of both facilities. Request a new stream if you still need it.",
    ),
    Explanation(
        "error",
        "shutting-down",
        "s2uc or the program was stopped while a command was waiting for its answer, or the link was closed.",
        "nobody",
        "Run the command again if you want its result. Streams that exist continue.",
    ),
    # -- the commands
    Explanation(
        "command",
        "usage",
        "The command line is wrong: an option or an argument is unknown, missing, or has a wrong value.",
        "you",
        "The message names the option. `--help` after the command shows what it takes.",
    ),
    Explanation(
        "command",
        "configuration",
        "A configuration file, a request file, your list of streams or a shortened uid cannot be used.",
        "you",
        "The message names the file and the setting, or the uid. `s2uc list` shows the streams in your list.",
    ),
    Explanation(
        "command",
        "certificate",
        "A certificate, a key, an authority or a revocation list cannot be used.",
        "you",
        "The message names the file. `scistream pki show FILE` explains it.",
    ),
    Explanation(
        "command",
        "interrupted",
        "The command was interrupted (Ctrl-C or SIGTERM) and has cleaned up.",
        "nobody",
        "Run it again if you want its result. `s2uc list` shows whether a stream is left.",
    ),
    Explanation(
        "command",
        "not-started",
        "The program that `appctrl` or the demonstration was to run could not be started.",
        "you",
        "Check the path and the permissions of the program that the message names.",
    ),
    Explanation(
        "command",
        "failed",
        "The command could not do its work. The message says why.",
        "you",
        "Do what the message says.",
    ),
    Explanation(
        "command",
        "internal",
        "The command has a fault of its own.",
        "the developers of SciStream",
        "Report it with the traceback on standard error and the output of `--version`.",
    ),
    # -- exit statuses
    Explanation("status", "0", "The command has done what it was asked for.", "nobody", "Nothing is to be done."),
    Explanation(
        "status",
        "1",
        "The stream or a facility has failed, a check has found a problem, the command was interrupted and has "
        "cleaned up, or its output cannot be written.",
        "as the error code says",
        "Read the last line on standard error, or `error` in the last line of --json, and explain its code.",
    ),
    Explanation(
        "status",
        "2",
        "The usage or the configuration is wrong. Nothing was requested or changed.",
        "you",
        "The message names the option, the file or the setting, and what is allowed.",
    ),
    Explanation(
        "status",
        "126",
        "`appctrl` has not started the program, because it cannot be executed.",
        "you",
        "Make the file executable (chmod +x), and check the interpreter in its first line.",
    ),
    Explanation(
        "status",
        "127",
        "`appctrl` has not started the program, because there is no such program.",
        "you",
        "Check the name of the program and PATH.",
    ),
    Explanation(
        "status",
        "130",
        "The command was interrupted before there was anything to clean up.",
        "nobody",
        "Run it again if you want its result.",
    ),
    Explanation(
        "status",
        "141",
        "The reader of the output has closed the pipe, as `head` does.",
        "nobody",
        "Nothing is to be done.",
    ),
    # -- resets
    Explanation(
        "reset",
        "application",
        "The program at this side reset or refused a connection, does not listen, or cannot be reached.",
        "who runs the program at that side",
        "Check that the program runs and listens on the address that `appctrl` was given, and that no firewall is "
        "between it and its gateway.",
    ),
    Explanation(
        "reset",
        "far-side",
        "The other side passed on a reset, or refused the connection. Its own reason is listed for that side.",
        "who is named for the other side",
        "Read the reasons of the other side in the same output.",
    ),
    Explanation(
        "reset",
        "wan",
        "A connection between the gateways failed: it could not be opened, was cut, or was silent for too long.",
        "the operators of both facilities, and of the network between them",
        "Test the path with `s2uc probe`. The stream stays, and new connections work as soon as the path does.",
    ),
    Explanation(
        "reset",
        "stranger",
        "A peer connected to the port of a gateway and did not show the credentials of the stream, or came from "
        "outside the allowed networks. It never carried data of the stream.",
        "nobody; the facility's operator, if there are very many",
        "Nothing is to be done: such connections are reset. A firewall can keep them out (docs/howto/firewall.rst).",
    ),
    Explanation(
        "reset",
        "gateway",
        "The gateway itself ended the connection: it is short of descriptors or memory, a limit is reached, its "
        "targets were replaced, or a part of it has failed and was restarted.",
        "the operator of that facility",
        "Tell the operator the reason, the uid and the time. New connections work again after a restarted part.",
    ),
)

EXPLANATIONS: Mapping[str, Explanation] = {one.code: one for one in _ALL}
"""All explanations, by code, in the order in which they are shown."""


def remedy_for(code: str | None) -> str:
    """Return what to do about an error code; for an unknown one, of a later version, what its sentence says."""
    found = EXPLANATIONS.get(code or "")
    return found.remedy if found is not None else "Do what the message says; a later version may explain this code."
