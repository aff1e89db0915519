"""The demonstration: two complete facilities on one machine, and two programs that stream through them.

`detector` and `consumer` are ordinary TCP programs that know nothing of SciStream, and `frames` is the format of what
they send. `facilities` starts and ends the servers. `cli` is the command ``scistream demo``.
"""
