"""Fakes that stand at the seams: real sockets, real bytes, and a truth to compare with."""
