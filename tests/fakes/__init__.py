"""Fakes at the boundaries: real sockets, real bytes, and records to compare with."""
