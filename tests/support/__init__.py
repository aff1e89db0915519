"""Code that tests in several folders share.

With real sockets: `facilities` configures and starts daemons, `programs` runs programs, `fork_server` starts them
faster, `forked_elements` does the same for elements, `applications` are the ends of streams, `leased_ports` reserves
ports for one test run, and `tcp_sockets` asks the kernel for sockets.

In memory: `memory_network` is a reactor, `memory_facilities` runs whole facilities on it, `hostile_parties` runs one
party against a far side that a test scripts, `memory_tls` connects two ends of TLS, and `machine_rig` runs one machine.

In general: `waiting` waits for a condition, `requirements` skips a test if the machine lacks something,
`message_strategies` generates messages, `aged_certificates` makes certificates that expire soon, and `protocol_page`
reads the protocol reference.
"""
