"""One upstream: its limit, its signals, its usage."""
