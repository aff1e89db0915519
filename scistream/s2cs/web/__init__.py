"""What an S2CS shows to its operators over HTTP: the JSON API, the stream of changes, and the status page."""
