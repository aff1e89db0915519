"""Certificates and TLS: the authority of a facility, control links, a stream's own credentials."""
