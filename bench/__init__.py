"""`make bench`: compare this project with HAProxy, nginx, stunnel and socat, in turn on the same machine.

The benchmark is not part of the installed package: run it from a checkout. `python -m bench --help` lists its options.
"""
