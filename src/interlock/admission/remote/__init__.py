"""Admission through an Interlock server."""

from interlock.admission.remote.admission import RemoteAdmission as RemoteAdmission
