"""How much: limits of users and keys, held before the provider is called and settled to the truth once.

`ledger` is the arithmetic, in this process; `history` is what earlier processes have used, read from the log at start.
"""
