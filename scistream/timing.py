"""Every time limit of the product, in seconds: how long is waited, how often is looked, how long is remembered.

One line each, with the reason. Modules read a limit where they use it, as `timing.HANDSHAKE`, so that a test can set
another one in one place. What a configuration file sets, and what the protocol allows as the value of a field, is not
here; neither is a share of a time.
"""

from __future__ import annotations

_MINUTE, _HOUR, _DAY = 60.0, 3600.0, 86400.0

# -- links between all parties

CONNECT = 10.0  # to connect to a control port: a host that is down does not answer at all
HANDSHAKE = 10.0  # for the TLS handshake of a link: the slowest honest peer is some round trips away
FIRST_LINE = 10.0  # from the handshake to the first line: whoever has nothing to say needs no link
CLOSE = 10.0  # for the peer to take what is still to be written, and to close its end
LONGEST_TIMER = _DAY  # a timer that ends a link with its certificate: the wall clock may be set meanwhile
FIRST_REPEAT = 2.0  # until a command without an answer is sent again: longer than most answers take
LONGEST_REPEAT = 10.0  # between two such repetitions, which come half as often each time
FIRST_RECONNECT = 0.2  # until a lost link is dialled again: a server that is started anew is soon there
LONGEST_RECONNECT = 5.0  # between two such tries, which come half as often each time
POLL = 15.0  # between two questions how streams are, on a link that is silent otherwise

# -- whom a control port lets in

REFUSALS_HALVE = 60.0  # in which half of what is held against an address is forgotten
FIRST_REFUSAL = 1.0  # for which an address that failed too often is refused, doubled with each further failure
UNPROVEN_GRACE = 2.0  # before a link that has not shown who it is may lose its place to one from the same address
COMMAND_BURST = 5.0  # worth of commands that may come at once: a client that was away sends all that waits

# -- certificates, logs, files, descriptors

EXPIRY_LOOK = _DAY  # between two looks at what expires: warnings are counted in days
SOONEST_EXPIRY_LOOK = 1.0  # until a look that would be due already
TALLY = 60.0  # for which events of one kind are counted, and told as one line of the log
FILE_LOCK = 10.0  # for another command to let go of a file, which takes it milliseconds
FILE_LOCK_LOOK = 0.05  # between two tries to lock that file
ACCEPT_PAUSE = 0.5  # without accepting, when descriptors have run out: those that close need time for it
SHORTAGE_QUIET = 60.0  # without a shortage of descriptors, until the next one is worth a line of the log again

# -- S2CS

EARLY_REQUEST = 3.0  # that a request waits for gateways which have not been heard yet, as after a start of all
GATEWAY_ANSWER = 20.0  # for a gateway to reserve or to set targets: above what it takes to look names up
GATEWAY_STATUS = 20.0  # for a page of what a gateway holds; a gateway that is silent so long gets no new stream
GATEWAY_FIGURES = 2.0  # for fresh figures: a user waits, and what is known will do
RELEASE_AGAIN = 15.0  # until a gateway that could not be asked to release is asked again
OWNER_SETS_TARGETS = 3.0  # for the owner's client to lead a stream to new listeners, before the S2CS does it
BETWEEN_OWN_UPDATES = 1.0  # between two targets that an S2CS sets by itself, however often ProdApp moves
HELD_LONGER = 60.0  # after the life of a stream in which a gateway may hold it still: it counts from its own answer
SHORTENED_LATER = 30.0  # that a gateway is given above a shortened life, so that the S2CS is first to end the stream
FIRST_WRONG_KEY = 1.0  # until a wrong Hello is answered where there are many, doubled with each further one
LONGEST_WRONG_KEY = 8.0  # to which that delay is doubled: less than a link without a certificate may last
REMEMBER_RELEASED = _DAY  # for which a released stream can be asked about: a user may come back the next morning
REQUEST_WINDOW = _MINUTE  # in which an owner's new requests are counted: `requests_per_minute`
AUDIT_WINDOW = _MINUTE  # in which refusals of one kind get few lines of the audit trail
FIGURES_GRACE = 60.0  # by which a gateway's clock may differ before its figures count as impossible

# -- S2DS, its initiator

REMEMBER_FIGURES = _DAY  # for which the last figures of a stream are kept for an S2CS that is away
TARGET_LOOK_UP = 10.0  # to look up the names in new targets: less than GATEWAY_ANSWER, which waits for it
NAME_SERVER_TRIES = (1, 2, 4)  # until a name server is asked again, and at last given up: below TARGET_LOOK_UP
DIAGNOSIS_CONNECT = 5.0  # for a test connection to the other gateway, to find out why others fail
DIAGNOSIS_WAIT = 2.0  # for the other gateway to close a test connection, if it refuses this gateway
CHANNEL_BROKEN = 30.0  # of failures without any connection, after which a channel is called broken
OUTAGE_FORGOTTEN = 120.0  # without a try, after which nobody knows any more whether a channel is broken
ROOM_LOOK = 0.1  # until a listener that has no room for connections looks again
ELEMENT_ANSWER = 10.0  # for an element to obey: one that is silent and idle is ended
ELEMENT_START = 30.0  # for the same while the element is being started, on a machine that is busy
ELEMENT_BUSY = 60.0  # that an element may be busy with something else before it answers
ELEMENT_BEAT = 5.0  # between two questions whether an element is alive
ELEMENT_AGAIN = 0.1  # until a new element takes the place of one that has died, doubled while they die young
LONGEST_ELEMENT_AGAIN = 5.0  # to which that wait is doubled: a gateway without elements carries nothing
ELEMENT_YOUNG = 10.0  # for which an element has to live for its death to count as the first
ELEMENT_STOP = 2.0  # for an element to end by itself
COUNT_UNREAD = 1.0  # between two sums of the unread bytes of all streams, which elements count every two seconds

# -- S2DS, what it measures

PROBE_CONNECT = 12.0  # to connect all channels of a probe: above DIAGNOSIS_CONNECT, so that the reason is known
PROBE_PING = 5.0  # for one small message to come back, and for all of them together
PROBE_DRAIN = 2.0  # for test data that is still on its way to arrive
PROBE_REPORT = 0.1  # between two reports of what has arrived
PROBE_STEP = 0.1  # between two looks whether the time of a measurement is over
PROBE_OWN_CONNECT = 1.0  # for a connection of the gateway to itself, which needs no network

# -- S2DS, its elements

RATE_BURST = 0.05  # of a stream's rate that may go at once
RATE_TURN = 0.002  # of a stream's rate that one connection gets at a time, so that all have their share
LEAST_WAIT = 1e-6  # for tokens: less could be lost in the rounding of a clock, and asked for again for ever
LATEST_KEEPALIVE = 15.0  # until TCP asks a silent peer: kernel timers are exact to 0.25 s up to 16 s, not beyond
WAN_GRACE = 1.0  # that a connection from the WAN has for its handshake before another may take its place
WAN_SHARE_GRACE = 0.5  # the same for connections by which an address has more than its share
WAN_SILENT_GRACE = 0.1  # the same for one on which nothing has come: a gateway begins to speak at once
RESETS_TOLD = 1.0  # between two reports of why connections were reset
SAMPLE = 2.0  # between two looks at the round-trip times and rates of connections
NAME_KEPT = 15.0  # for which the addresses of a name are kept: for a burst of connections, not for a name that moves
NAME_LOOK_UP = 8.0  # to look up the name of a target: what the tries of NAME_SERVER_TRIES take, and one more second
LAN_SILENCE = 60.0  # until an idle application whose host has vanished is noticed
DIAL_AGAIN = 0.1  # between two tries to connect to a target
HANDSHAKE_AHEAD = 0.05  # that a connection waits for earlier handshakes beyond what its own took: one may never come
DELIVER = 10.0  # to deliver what came before a reset, before the reset is passed on all the same
DELIVER_STALLED = 1.0  # after which that is given up if the far end takes nothing at all
DELIVERED_LOOK = 0.01  # between two looks whether the far end has it all
TURN = 0.5  # that a connection waits for its turn to be dialled in the order of accepting
TURN_LOOK = 0.001  # until the first look at whose turn it is, doubled while nothing changes
LONGEST_TURN_LOOK = 0.008  # to which the time between two such looks is doubled

# -- S2UC

ANSWER = 30.0  # for one answer of a facility: above GATEWAY_ANSWER, which it may wait for itself
RELEASE = 60.0  # for a release in all: a facility whose gateway is silent goes on by itself
WORK = 120.0  # for any other command in all, however often a facility says that it is working on it
REACH = 5.0  # to reach a facility of which something is to be known that was asked for earlier
STATE_LOOK = 0.5  # between two looks at a side that is in the middle of an operation
BETWEEN_TARGETS = 1.0  # between two generations, however often a facility names other listeners of ProdApp
SAME_END = 1.0  # by which the ends of both sides may differ and count as one
PAGE_OF_LIST = 30.0  # for one answer on the way to a list
LIST = 120.0  # for a list in all, however many pages it has
INTERRUPTED_RELEASE = 5.0  # that a command which fails or is interrupted waits for both sides to confirm its release
FIRST_WORD = 0.4  # of silence before a command says what it waits for
PROGRESS = 0.5  # between two looks at whether what a command waits for has changed
WATCH_LOOK = 0.5  # between two looks at a stream that is waited for
LONG_LOOK = 2.0  # after which a look has taken so long that the silent side is named
REMEMBER_OVER = _DAY  # for which a stream that is over stays in the list: as long as facilities know of it
BETWEEN_CLEARINGS = _HOUR  # until a program that goes on asking removes the files of streams that are long over
PROBE_REACH = 15.0  # for a facility to be reached by a probe, with some tries
PROBE_STATUS = 10.0  # for its first answer, which needs no gateway
PROBE_GRANT = 30.0  # for it to reserve, as ANSWER
PROBE_RELEASE = 30.0  # for it to release what a probe has held
PROBE_UPDATE = 25.0  # for it to set the targets of a probe: above GATEWAY_ANSWER
PROBE_BESIDE_DATA = 40.0  # that a probe takes at most beside the seconds of its test data
PROBE_LOOK = 0.25  # between two looks at what a probe has found
PROBE_DATA = 5.0  # for which test data flows each way, if the user does not say

# -- applications

HELLO = 30.0  # for an S2CS to answer a Hello, with some tries
APP_SILENCE = 2.0  # of waiting after which a controller says what for

# -- the demonstration

DEMO_START = 60.0  # for a server to accept connections, on a laptop that is busy
DEMO_LISTEN_LOOK = 0.05  # between two looks whether it does
DEMO_CONNECT = 5.0  # for one such look
DEMO_STOP = 5.0  # for a process to end by itself after SIGTERM
DEMO_GONE = 2.0  # for the processes of a group to be gone after SIGKILL
DEMO_GONE_LOOK = 0.05  # between two looks whether they are
DEMO_LOOK = 0.5  # between two looks at the stream, which the view shows
DEMO_LAST_LOOK = 3.0  # for the last of these looks to be answered
DEMO_DETECTOR = 5.0  # for the detector to end after its consumer
DEMO_CLOSE = 3.0  # for the client to close its links
DEMO_STEP = 60.0  # for each step that facilities or applications take
DEMO_BYTES = 60.0  # without one more byte, after which the demonstration gives up
DETECTOR_LOOK = 0.25  # between two looks of a waiting channel at whether another one has failed
DEMO_LINE = 2.0  # between two lines of the view where it is no terminal
