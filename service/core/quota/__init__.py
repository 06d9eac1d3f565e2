"""Quotas: limits of users and keys, held before a provider call and settled once afterwards.

`local` is the arithmetic in this process, for SQLite; `history` restores the usage of earlier
processes at startup. `shared`, `postgres` and `redis` are for replicas that share a database.
`limits` are the checks and refusals of every implementation.
"""
