"""Admission across machines: the kernel as a library of Redis or Valkey."""
