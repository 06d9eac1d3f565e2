"""Locks of the dependencies, and the program that checks them."""
