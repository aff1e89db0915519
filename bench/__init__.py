"""`make bench`: this project beside HAProxy, nginx, stunnel and socat on the same machine, in turn.

Not installed with the package: it runs from a checkout. `python -m bench --help` says what there is.
"""
