"""All time limits in seconds: how long to wait, how often to check, how long to remember.

One line each; the comment continues "seconds ...", with the reason where it is not obvious. Modules read a limit where
they use it, as `timing.HANDSHAKE`, so that a test can change it in one place. Settings of configuration files, ranges
of protocol fields and fractions of a time are not here.
"""

from __future__ import annotations

_MINUTE, _HOUR, _DAY = 60.0, 3600.0, 86400.0

# -- links between all parties

CONNECT = 10.0  # to connect to a control port: a host that is down does not answer at all
HANDSHAKE = 10.0  # for the TLS handshake of a control link, which takes a slow but honest peer a few round trips
FIRST_LINE = 10.0  # from the handshake to the first line: a peer that has nothing to send needs no link
CLOSE = 10.0  # for the peer to read pending data and close its end
LONGEST_TIMER = _DAY  # for a timer that closes a link when a certificate expires, since the wall clock may be set
FIRST_REPEAT = 2.0  # until an unanswered command is repeated: longer than most answers take
LONGEST_REPEAT = 10.0  # between two repetitions, doubled up to this
FIRST_RECONNECT = 0.2  # until a lost link is connected again: a restarted server is back soon
LONGEST_RECONNECT = 5.0  # between two attempts to reconnect, doubled up to this
POLL = 15.0  # between two polls of the peer on a link, by Status or an application's Hello, in case a message was lost

# -- admission at a control port

REFUSALS_HALVE = 60.0  # in which the count of an address's failures halves
FIRST_REFUSAL = 1.0  # for which an address with too many failures is refused, doubled with each further failure
UNPROVEN_GRACE = 2.0  # before an unproven link may be closed to make room for one from the same address
COMMAND_BURST = 5.0  # worth of commands that may come at once: a client that was away sends all that wait

# -- the HTTP listener

HTTP_REQUEST = 10.0  # from connecting to the end of the first request: browsers and Prometheus send it at once
METRICS_FRESH = 1.0  # for which a page of metrics is used again, so that readers cannot keep a daemon busy
HTTP_IDLE = 75.0  # for the next request on a connection: more than the minute between two scrapes

# -- certificates, logs, files, descriptors

EXPIRY_CHECK = _DAY  # between two checks for expiring certificates: warnings are counted in days
SOONEST_EXPIRY_CHECK = 1.0  # until a check that would be due already
TALLY = 60.0  # during which events of one kind are counted, and reported in one line of the log
FILE_LOCK = 10.0  # for another command to release a lock, which it holds for milliseconds
FILE_LOCK_POLL = 0.05  # between two attempts to take that lock
ACCEPT_PAUSE = 0.5  # without accepting, when descriptors have run out, to let connections close
JOURNAL = 0.1  # for the journal to make room for a line of the log, which then goes to standard output instead
NOTIFY = 1.0  # for the service manager to take a notification, which it does at once unless it is stuck
MORE_TIME = 30.0  # to ask of the service manager at a time while streams end: it kills a stuck process after that
STATUS = 10.0  # between two looks at what `systemctl status` is to show
SHORTAGE_QUIET = 60.0  # without a shortage of descriptors, until the next one is logged again

# -- S2CS

EARLY_REQUEST = 3.0  # that a request waits for gateways that are not connected yet, as after a common start
GATEWAY_ANSWER = 20.0  # for a gateway to reserve or to set targets: more than it needs to resolve names
GATEWAY_STATUS = 20.0  # for a page of a gateway's streams; a gateway that does not answer gets no new streams
LOOK_AGAIN = 1.0  # between two requests for all streams of a gateway that somebody watches
GATEWAY_FIGURES = 2.0  # for new figures: a user is waiting, and older figures will do
RELEASE_AGAIN = 15.0  # until REL is sent again to a gateway that could not be reached
OWNER_SETS_TARGETS = 3.0  # for the owner's client to set targets for new listeners, before the S2CS does so
BETWEEN_OWN_UPDATES = 1.0  # between two updates of targets by an S2CS itself, however often ProdApp moves
HELD_LONGER = 60.0  # after the end of a stream, in which a gateway may still hold it, as it counts from its own answer
SHORTENED_LATER = 30.0  # added to a shortened life for a gateway, so that the S2CS is the first to end the stream
FIRST_WRONG_KEY = 1.0  # until a Hello with a wrong key is answered if there are many, doubled with each further one
LONGEST_WRONG_KEY = 8.0  # up to which that delay is doubled: less than an anonymous link may last
EXTENSION_TRAVELS = 10.0  # by which an extension may exceed the longest life, as it counts from its arrival
REMEMBER_RELEASED = _DAY  # during which the state of a released stream is available: users come back the next morning
REQUEST_WINDOW = _MINUTE  # in which an owner's new requests are counted: `requests_per_minute`
AUDIT_WINDOW = _MINUTE  # in which the lines for one kind of refusal in the audit trail are limited
BETWEEN_EVENTS = 1.0  # between two events for a reader of the status page: people see no more
EVENTS_SILENT = 15.0  # without a change, until an event says that the server is there: less than proxies allow
EVENTS_AGAIN = 2.0  # until a browser connects again for events after a lost connection
SLOW_READER = 20.0  # for a reader of events that does not read, until it is disconnected
WATCHED_FIGURES = 2.0  # between two requests for new figures while somebody watches: gateways sample so often
BETWEEN_POINTS = 1.5  # between two points of a plot: less than WATCHED_FIGURES
HISTORY_KEPT = 600.0  # for which the rates of a stream are kept for plots
RATES_STALE = 35.0  # after which a rate is unknown: two reports of a gateway have been missed
FIGURES_GRACE = 60.0  # by which a gateway's clock may differ before its figures count as impossible

# -- S2DS, its initiator

DRAIN_FAREWELL = 2.0  # after `shutdown_grace`, for the S2CS to release the streams that are left
REMEMBER_FIGURES = _DAY  # for which the last figures of a stream are kept for an S2CS that is away
TARGET_LOOKUP = 10.0  # to resolve the names in new targets: less than GATEWAY_ANSWER, which includes it
NAME_SERVER_TRIES = (1, 2, 4)  # for a name server to answer each attempt: less than TARGET_LOOKUP in all
DIAGNOSIS_CONNECT = 5.0  # for a test connection to the other gateway, to find out why others fail
DIAGNOSIS_WAIT = 2.0  # for the other gateway to close a test connection, if it refuses this gateway
CHANNEL_BROKEN = 30.0  # of failures without any success, after which a channel counts as broken
OUTAGE_FORGOTTEN = 120.0  # without an attempt, after which it is unknown whether a channel is broken
ROOM_POLL = 0.1  # between two checks of a listener that has no room for connections
ELEMENT_ANSWER = 10.0  # for an element to answer: one that is silent and idle is killed
ELEMENT_START = 30.0  # for an element to answer while it starts, on a busy machine
ELEMENT_BUSY = 60.0  # for an element to answer while it is busy with something else
ELEMENT_BEAT = 5.0  # between two pings of an element
ELEMENT_AGAIN = 0.1  # until a dead element is replaced, doubled while new ones die soon
LONGEST_ELEMENT_AGAIN = 5.0  # up to which that delay is doubled: a gateway without elements forwards nothing
ELEMENT_YOUNG = 10.0  # of life, after which the death of an element resets that delay
ELEMENT_STOP = 2.0  # for an element to exit by itself
PATHS_STALE = 10.0  # after the last report of an element, after which its connections count as gone: several samples
PATHS_CHECK = 1.0  # between two checks whether the addresses of the WAN's paths are there
COUNT_UNREAD = 1.0  # between two sums of the unread bytes of all streams, which elements count every two seconds

# -- S2DS, probes

PROBE_CONNECT = 12.0  # to connect all channels of a probe: more than DIAGNOSIS_CONNECT, so that the reason is known
PROBE_PING = 5.0  # for one small message to come back, and for all of them together
PROBE_DRAIN = 2.0  # for test data that is still in flight to arrive
PROBE_REPORT = 0.1  # between two reports of the bytes that have arrived
PROBE_STEP = 0.1  # between two checks whether a measurement is over
PROBE_OWN_CONNECT = 1.0  # for a connection of the gateway to itself, which needs no network

# -- S2DS, its elements

RATE_BURST = 0.05  # of a stream's rate that may be sent at once
RATE_TURN = 0.002  # of a stream's rate that one connection gets at a time, so that all get their share
RATE_LOCK = 0.001  # until tokens that another element has locked are tried again: it has them for microseconds
LEAST_WAIT = 1e-6  # for tokens: a shorter wait could be rounded to nothing and repeated without end
LATEST_KEEPALIVE = 15.0  # until TCP probes a silent peer: kernel timers are exact to 0.25 s up to 16 s, not beyond
WAN_GRACE = 1.0  # for the handshake of a connection from the WAN, before another may take its place
WAN_SHARE_GRACE = 0.5  # the same for a connection of an address that has more than its share
WAN_SILENT_GRACE = 0.1  # the same for a connection that has sent nothing: a gateway sends at once
RESETS_TOLD = 1.0  # between two reports of reset reasons
SAMPLE_INTERVAL = 2.0  # between two samples of the round-trip times and rates of connections
NAME_KEPT = 15.0  # for which the addresses of a name are cached: enough for a burst of connections
NAME_LOOKUP = 8.0  # to resolve the name of a target: the sum of NAME_SERVER_TRIES, and one more second
TURNS = 0.001  # for turns of bulk data, before an element looks for messages that have arrived meanwhile
LAN_SILENCE = 60.0  # until it is noticed that the host of an idle application has vanished
DISTANT = 0.005  # of round-trip time, above which the receive window of a new connection grows early
DATA_HANDSHAKE = 10.0  # for the TLS handshake of a data connection
TICKET = 300.0  # after which gateways show each other their certificates again
TICKET_USED = 270.0  # for which a ticket is used: the other gateway, which gave it earlier, still accepts it then
TICKET_AGAIN = 10.0  # for which they do so after a ticket was not accepted
DATA_DIAL = 10.0  # to connect to a target, in all attempts
SHORTEST_DIAL = 0.1  # for the last address of a target, however long the others took
DIAL_AGAIN = 0.1  # between two attempts to connect to a target
HANDSHAKE_AHEAD = 0.05  # that a connection waits for earlier handshakes, beyond the duration of its own
READY_SILENCE = 12.0  # until it is noticed that the other end of a ready connection has vanished
READY_AGAIN = 0.5  # until a ready connection that failed is dialled again, doubled while they fail
LONGEST_READY_AGAIN = 15.0  # up to which that delay is doubled: less than a user waits for a site that is back
READY_YOUNG = 10.0  # of life, after which the loss of a ready connection resets that delay
READY_IDLE = 600.0  # after which a consumer's gateway that is dialled ends a ready connection, if it has others
READY_DEMAND = 0.5  # in which new connections are counted, at least, to find how many are needed
FAREWELL = 2.0  # for the other gateway to read why Connect was refused, before the connection is closed
DELIVER_BEFORE_RESET = 10.0  # to deliver the data that came before a reset, before the reset is passed on anyway
DELIVER_STALLED = 1.0  # after which delivery is given up if the far end takes nothing
DELIVERED_POLL = 0.01  # between two checks whether the far end has everything
TURN = 0.5  # that a connection waits to be forwarded in the order of accepting
TURN_POLL = 0.001  # until the first check whose turn it is, doubled while nothing changes
LONGEST_TURN_POLL = 0.008  # up to which the time between these checks is doubled

# -- S2UC

FACILITY_ANSWER = 30.0  # for one answer of a facility: more than GATEWAY_ANSWER, which may be part of it
FACILITY_RELEASE = 60.0  # for a release in all: the facility continues it even if a gateway is silent
FACILITY_WORK = 120.0  # for any other command in all, however many interim answers a facility sends
FACILITY_REACHED = 5.0  # to reach a facility that is asked about an existing stream
STATE_POLL = 0.5  # between two Status requests to a side that is in the middle of an operation
BETWEEN_TARGETS = 1.0  # between two generations, however often a facility reports new listeners of ProdApp
LEAST_PUT_BACK = 1.0  # until the end of a side that should have ended by now, when an extension is taken back
SAME_END = 1.0  # by which the ends of both sides may differ and still count as the same
PAGE_OF_LIST = 30.0  # for one page of a list
WHOLE_LIST = 120.0  # for a list in all, however many pages it has
INTERRUPTED_RELEASE = 5.0  # for both sides to confirm a release, when a command fails or is interrupted
FIRST_WORD = 0.4  # of silence before a command says what it is waiting for
PROGRESS_INTERVAL = 0.5  # between two checks whether the message about what a command waits for has changed
FIGURES_INTERVAL = 1.0  # between two figures for a program, unless it asks for another interval
SHORTEST_FIGURES = 0.2  # between two figures, each of which gateways are asked for
CLIENT_EXIT = 5.0  # for clients that were not closed to release what is owed and to close, when Python exits
WATCH_POLL = 0.5  # between two Status requests about a stream that is waited for
SHORTEST_WATCH = 0.2  # between two Status requests of a watched stream, however short an interval the user asks for
SILENT_SIDE = 2.0  # without an answer to Status, after which the silent side is named
REMEMBER_OVER = _DAY  # for which an ended stream stays in the list: as long as facilities know it
DRAIN_POLL = 1.0  # between two questions about what is left of a drain
BETWEEN_CLEARINGS = _HOUR  # until a running program removes the files of old streams again
PROBE_REACH = 15.0  # for a probe to reach a facility, with several attempts
PROBE_STATUS = 10.0  # for the first answer to a probe, which needs no gateway
PROBE_GRANT = 30.0  # for a facility to reserve for a probe, as FACILITY_ANSWER
PROBE_RELEASE = 30.0  # for a facility to release a probe
PROBE_UPDATE = 25.0  # for a facility to set the targets of a probe: more than GATEWAY_ANSWER
PROBE_BESIDE_DATA = 40.0  # for a probe, in addition to the duration of its test data
PROBE_POLL = 0.25  # between two requests for the result of a probe
PROBE_DATA = 5.0  # of test data in each direction, unless the user asks for another duration

# -- applications

HELLO = 30.0  # for an S2CS to answer a Hello, with several attempts
JOIN_FILE_POLL = 1.0  # between two looks for a join file, which may be in a folder that many nodes share
APP_SILENCE = 2.0  # of waiting, after which a controller says what it is waiting for

# -- scistream check

CHECK_CONNECT = 5.0  # to connect to a gateway or a peer, and again to talk with it: several are asked at once
CHECK_LOOKUP = 5.0  # for the name service to answer, which may have to ask several servers
CHECK_CLOCK = 2.0  # by which the clock of a peer may differ: it is told in whole seconds, and the answer takes time

# -- the demonstration

DEMO_START = 60.0  # for a server to accept connections, on a busy laptop
DEMO_LISTEN_POLL = 0.05  # between two checks whether a server accepts connections
DEMO_CONNECT = 5.0  # for one such check
DEMO_STOP = 5.0  # for a process to exit after SIGTERM
DEMO_GONE = 2.0  # for the processes of a group to disappear after SIGKILL
DEMO_GONE_POLL = 0.05  # between two checks whether they have
DEMO_POLL = 0.5  # between two Status requests, whose answers the view shows
DEMO_LAST_STATUS = 3.0  # for the answer to the last of these requests
DEMO_DETECTOR = 5.0  # for the detector to exit after its consumer
DEMO_CLOSE = 3.0  # for the client to close its links
DEMO_STEP = 60.0  # for each step of the facilities and applications
DEMO_BYTES = 60.0  # without progress, after which the demonstration gives up
DETECTOR_POLL = 0.25  # between two checks of a waiting channel whether another one has failed
DEMO_LINE = 2.0  # between two lines of the view if it is not on a terminal
