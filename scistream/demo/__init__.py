"""The demonstration: two whole facilities on one machine, and two programs that stream through them.

`detector` and `consumer` are ordinary TCP programs that know nothing of streams; `frames` is what they
say to each other; `facilities` starts and ends the servers; `command` is ``scistream demo``.
"""
