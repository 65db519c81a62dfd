"""Permits for other processes: plain HTTP routes, and the connection that `RemoteAdmission` speaks."""
