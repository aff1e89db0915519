"""The command `scistream check`: looks at a gateway or control server and its machine, before and while it runs.

Each module has one subject: facts, a function that gathers them, and checks, which are functions of the facts and
return findings. Nothing here changes anything, and connections are made only where the user or the configuration
says so.
"""
