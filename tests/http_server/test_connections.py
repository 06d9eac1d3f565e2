"""The table of connections: which are dropped, and when deadlines are checked."""

from service.http_server.connections import SWEEP_TICKS, ConnectionTable, HttpLimits


class Connection:
    """A connection that counts what is done to it. `buffered`: the bytes that it reports."""

    def __init__(self, buffered: int = 0) -> None:
        self.buffered = buffered
        self.checks = self.resumed = 0
        self.dropped = False

    def check_deadlines(self, now: float) -> int:
        """Count a check."""
        self.checks += 1
        return self.buffered

    def drop(self) -> None:
        """Note that it was dropped."""
        self.dropped = True

    def resume_reading(self) -> None:
        """Count a resumption."""
        self.resumed += 1


def table_of(connections_max: int = 10, **limits: int) -> ConnectionTable:
    """A table without reserved connections."""
    return ConnectionTable(
        HttpLimits(connections_max=connections_max, connections_reserved=0, **limits), lambda: 0.0
    )


def add(
    table: ConnectionTable, count: int, *, busy: bool = False, buffered: int = 0
) -> list[Connection]:
    """Add connections."""
    connections = [Connection(buffered) for _ in range(count)]
    for connection in connections:
        table.add(connection)
        if busy:
            table.set_busy(connection)
    return connections


def test_the_longest_idle_connection_is_dropped() -> None:
    """A new connection takes the place of the one that has been idle for the longest time."""
    table = table_of(connections_max=3)
    first, second, _ = add(table, 3)
    table.set_busy(first)
    table.set_idle(first)
    add(table, 1)

    assert (first.dropped, second.dropped) == (False, True)
    assert table.statistics().dropped == {"connections_max": 1}


def test_a_stalled_connection_is_dropped_if_none_is_idle() -> None:
    """A busy connection gives way only if its client does not read."""
    table = table_of(connections_max=2)
    reading, stalled = add(table, 2, busy=True)
    table.set_stalled(stalled, stalled=True)
    (new,) = add(table, 1)

    assert (reading.dropped, stalled.dropped, new.dropped) == (False, True, False)


def test_a_new_connection_is_dropped_if_all_are_busy() -> None:
    """Nothing that is in progress gives way to a new connection."""
    table = table_of(connections_max=2)
    busy = add(table, 2, busy=True)
    (new,) = add(table, 1)

    assert [connection.dropped for connection in [*busy, new]] == [False, False, True]
    assert len(table) == table.busy == 2


def test_busy_connections_are_counted() -> None:
    """The count follows requests, and connections that are lost during one."""
    table = table_of()
    first, second, third = add(table, 3, busy=True)
    table.set_idle(first)
    table.discard(second)
    table.discard(second)
    table.drop(third, "test")
    table.set_idle(third)

    assert (len(table), table.busy) == (1, 0)


def test_every_connection_is_checked_once_per_sweep() -> None:
    """A sweep takes several ticks, so that no tick takes long, and leaves nobody out."""
    table = table_of(connections_max=10_000)
    connections = add(table, 1000)
    for _ in range(SWEEP_TICKS + 1):
        table.tick()

    assert {connection.checks for connection in connections} == {1}


def test_the_largest_buffers_are_dropped() -> None:
    """Above the limit of all buffers, connections that wait for clients are dropped."""
    table = table_of(connections_max=100, buffered_bytes_max=1000)
    (busy,) = add(table, 1, busy=True, buffered=900)
    small, large = add(table, 1, buffered=100) + add(table, 1, buffered=400)
    for _ in range(10):
        table.tick()

    assert (busy.dropped, small.dropped, large.dropped) == (False, False, True)


def test_reading_resumes_at_a_tick() -> None:
    """A connection that has discarded its share reads again at the next tick."""
    table = table_of()
    (connection,) = add(table, 1)
    allowed = table.discard_bytes(connection, 10)
    refused = table.discard_bytes(connection, 1 << 30)
    table.tick()

    assert (allowed, refused, connection.resumed) == (True, False, 1)
    assert table.discard_bytes(connection, 10)
