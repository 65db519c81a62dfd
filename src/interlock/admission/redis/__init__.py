"""Admission across machines: the kernel as a library of Redis or Valkey."""

from interlock.admission.redis.admission import RedisAdmission

__all__ = ["RedisAdmission"]
