"""TLS of control links and of the WAN leg: files, contexts, verification, reload and expiry."""
