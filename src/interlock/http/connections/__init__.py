"""Connections: how many there may be, how long each may take to ask, and what it may not say."""
