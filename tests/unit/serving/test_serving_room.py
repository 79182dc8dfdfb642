"""Who gives way to whom when a server is full."""

from shardctl.serving.room import Room


class Connection:
    def __init__(self, name, *, is_held_up=False):
        self.name, self.is_held_up, self.evicted = name, is_held_up, False

    def evict(self):
        self.evicted = True


def full(*, held_up=()):
    room = Room(3)
    connections = [Connection(name, is_held_up=name in held_up) for name in "abc"]
    assert all(room.enter(connection) for connection in connections)
    return room, connections


def evicted(connections):
    return "".join(connection.name for connection in connections if connection.evicted)


def test_the_one_that_was_silent_for_longest_gives_way():
    room, connections = full()
    assert room.enter(Connection("d"))
    assert evicted(connections) == "a"
    assert len(room) == 3


def test_a_client_that_sends_something_stays():
    room, connections = full()
    room.heard(connections[0])
    assert room.enter(Connection("d"))
    assert evicted(connections) == "b"


def test_a_whole_request_is_never_lost_and_its_connection_is_idle_again_after_its_answer():
    room, connections = full()
    for connection in connections:
        room.settle(connection)
    assert not room.enter(Connection("d"))
    assert evicted(connections) == ""
    room.await_from(connections[1])
    assert room.enter(Connection("d"))
    assert evicted(connections) == "b"


def test_a_client_that_the_server_does_not_read_from_is_not_silent():
    room, connections = full(held_up="ab")
    assert room.enter(Connection("d"))
    assert evicted(connections) == "c"


def test_a_client_that_left_makes_room():
    room, connections = full()
    room.leave(connections[2])
    room.leave(connections[2])
    assert room.enter(Connection("d"))
    assert evicted(connections) == ""
    room.await_from(connections[2])
    assert len(room) == 3
