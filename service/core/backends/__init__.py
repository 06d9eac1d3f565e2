"""Implementations of the ports that a second machine would have to share."""
