"""Quotas: limits of users and keys, held before a provider call and settled once afterwards.

`local` is the arithmetic in this process; `history` restores the usage of earlier processes at
startup; `limits` are the checks and refusals of every implementation.
"""
