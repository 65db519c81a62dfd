"""Sessions: runs in order, a log that has no gaps, and whoever wants to know what becomes of them."""
