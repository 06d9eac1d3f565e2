"""Background tasks of the process; each has an owner, a limit and `statistics()`."""
