"""What systemd gives a daemon and expects of it: notifications, sockets that it has opened, and the journal.

The protocols are small and documented, so no library is needed. Without systemd, nothing here has an effect.
"""
