"""A server within bounds, over real sockets of this machine. Times are short, and nothing waits for less than it takes."""

from __future__ import annotations

import asyncio
import gc
import socket
import struct
import weakref
from contextlib import asynccontextmanager

import pytest
from uvicorn.server import ServerState

from shardctl.errors import UsageError
from shardctl.serving.connection import Connection
from shardctl.serving.limits import Limits
from shardctl.serving.server import Server
from shardctl.serving.sockets import bind

ASK = b"GET /page HTTP/1.1\r\nHost: x\r\n\r\n"
PATIENCE_SECONDS = 60


class Application:
    """Answers with what came. `/late` waits for `go`, `/long` is long, `/unread` doesn't look at its body."""

    def __init__(self):
        self.go, self.begun, self.headers, self.left = asyncio.Event(), asyncio.Event(), [], 0

    async def __call__(self, scope, receive, send):
        self.headers = scope["headers"]
        self.begun.set()
        body, event = b"", {"more_body": scope["path"] != "/unread"}
        while event["more_body"]:
            event = await receive()
            if event["type"] == "http.disconnect":
                self.left += 1
                return
            body += event["body"]
        if scope["path"] == "/late":
            await self.go.wait()
        length = [] if scope["path"] == "/long" else [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": length})
        for _ in range(400 * (scope["path"] == "/long")):  # 25 MiB: more than any buffer on the way takes
            await send({"type": "http.response.body", "body": b"x" * 65_536, "more_body": True})
        await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def serving(**limits):
    app = Application()
    server, bound = Server(app, Limits(**limits)), bind("127.0.0.1", 0, "tests", "")
    bound.listen()
    task = asyncio.create_task(server.serve_on(bound))
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            yield app, server, bound.getsockname()
    finally:
        app.go.set()
        server.stop(at_once=True)
        await task


def play(scenario, **limits):
    async def run():
        async with serving(**limits) as (app, server, address):
            return await scenario(app, server, address)

    return asyncio.run(run())


def answer_to(*parts, **limits):
    """All that comes back until the server hangs up."""

    async def scenario(_, __, address):
        reader, writer = await asyncio.open_connection(*address)
        for part in parts:
            writer.write(part)
        received = await everything(reader)
        writer.close()
        return received

    return play(scenario, **limits)


async def everything(reader):
    received = b""
    try:
        while part := await reader.read(65_536):
            received += part
    except ConnectionResetError:
        pass
    return received


async def gone(server):
    while server.server_state.connections:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.01)


async def answer_on(reader):
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    return head.split(b" ")[1], await reader.readexactly(length)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parts", "limits", "status"),
    [
        ([b"GET / HTTP/1.1\r\nx-long: " + b"v" * 2_000], {"head_bytes": 1_000}, b"431"),
        ([b"GET / HTTP/1.1\r\nx-long: " + b"v" * 2_000 + b"\r\n\r\n"], {"head_bytes": 1_000}, b"431"),
        ([b"GET /" + b"a" * 2_000], {"head_bytes": 1_000}, b"431"),
        ([b"GET / HTTP/1.1\r\n" + b"a:b\r\n" * 11 + b"\r\n"], {"headers": 10}, b"431"),
        ([b"GET / HTTP/1.1\r\nHost:"], {"head_seconds": 0.05}, b"408"),
        ([b"nonsense\r\n\r\n"], {}, b"400"),
    ],
    ids=["a header", "a header that ends", "a path", "many headers", "a late head", "nonsense"],
)
def test_a_head_beyond_its_bounds_is_refused(parts, limits, status):
    assert answer_to(*parts, **limits).startswith(b"HTTP/1.1 " + status)


@pytest.mark.slow
@pytest.mark.parametrize("begin", [b"", ASK], ids=["new", "keep-alive"])
def test_a_connection_on_which_nothing_comes_ends(begin):
    answer_to(begin, head_seconds=0.05, keep_alive_seconds=0.05)  # comes back at all


def test_a_later_head_that_does_not_end_ends_the_connection():
    assert answer_to(ASK, b"GET /page HTTP/1.1\r\n", head_seconds=0.05).count(b"HTTP/1.1 ") == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "rest",
    [b"1;" + b"e" * 50_000, b"0\r\nx-trailer: " + b"v" * 50_000, b"0\r\n" + b"a:b\r\n" * 10_000],
    ids=["an extension", "a trailer", "many trailers"],
)
def test_what_comes_in_a_body_without_being_a_part_of_it_is_bounded(rest):
    begin = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert answer_to(begin, rest, head_bytes=1_000).startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize(
    "rest",
    [(b"Content-Length: 5\r\n\r\nhello",), (b"Transfer-Encoding: chunked\r\n\r\n", b"5\r\nhello\r\n0\r\n\r\n")],
    ids=["with a length", "in chunks"],
)
def test_a_body_behind_the_wish_for_an_upgrade_is_refused_and_not_overlooked(rest):
    """As Java's HttpClient sends it where it isn't told to use HTTP/1.1: the parser takes the body for another protocol's."""
    first, *more = rest
    begin = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    answer = answer_to(begin + first, *more)
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"without Upgrade" in answer


def test_the_wish_for_an_upgrade_alone_is_ignored():
    begin = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 0\r\n\r\n"
    assert answer_to(begin, keep_alive_seconds=0.05).startswith(b"HTTP/1.1 200")


def test_trailers_are_no_headers():
    async def scenario(app, _, address):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        await app.begun.wait()
        writer.write(b"1\r\nb\r\n0\r\nauthorization: late\r\n\r\n")
        response = await answer_on(reader)
        writer.close()
        return response, dict(app.headers)

    response, headers = play(scenario)
    assert response == (b"200", b"b")
    assert b"authorization" not in headers


def test_a_long_body_is_no_long_head():
    body = b"b" * 300_000
    response = answer_to(b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 300000\r\n\r\n", body)
    assert response.endswith(b"\r\n\r\n" + body)


def test_what_comes_behind_a_request_never_takes_its_answers_place():
    async def scenario(app, _, address):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(ASK.replace(b"page", b"late") + b"nonsense\r\n\r\n")
        await app.begun.wait()
        app.go.set()
        return await everything(reader)

    responses = play(scenario)
    assert responses.startswith(b"HTTP/1.1 200")
    assert b"connection: close" in responses
    assert responses.count(b"HTTP/1.1 ") == 1


def test_of_requests_sent_ahead_the_first_are_answered_and_the_last_closes():
    late = ASK.replace(b"page", b"late")

    async def scenario(app, _, address):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(late * 100)
        await app.begun.wait()
        app.go.set()
        return await everything(reader)

    responses = play(scenario, pipelined=4)
    assert responses.count(b"HTTP/1.1 200") == 5
    assert responses.rpartition(b"HTTP/1.1 200")[2].count(b"connection: close") == 1


def test_an_answer_that_nobody_fetches_is_given_up():
    async def scenario(app, server, address):
        with socket.create_connection(address) as client:
            client.sendall(ASK.replace(b"page", b"long"))
            await app.begun.wait()
            await gone(server)

    play(scenario, unread_seconds=0.05)


def test_a_full_server_answers_a_newcomer():
    async def scenario(_, __, address):
        silent = [await asyncio.open_connection(*address) for _ in range(4)]
        reader, writer = await asyncio.open_connection(*address)
        writer.write(ASK)
        status, _ = await answer_on(reader)
        assert await everything(silent[0][0]) == b""
        for _, stream in [*silent, (None, writer)]:
            stream.close()
        return status

    assert play(scenario, connections=4) == b"200"


@pytest.mark.slow
def test_a_connection_that_is_reset_leaves_nothing_behind():
    async def scenario(_, server, address):
        client = socket.create_connection(address)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        reader, writer = await asyncio.open_connection(sock=client)
        writer.write(ASK)
        await answer_on(reader)
        (connection,) = server.server_state.connections
        assert isinstance(connection, Connection)
        left = weakref.ref(connection)
        del connection
        writer.transport.abort()
        await gone(server)
        await asyncio.sleep(0)
        gc.collect()
        return left() is None

    assert play(scenario)


def test_a_body_that_nobody_reads_is_not_received():
    """The connection goes on behind a short one."""
    begin = b"POST /unread HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n"

    async def scenario(_, __, address):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(begin + b"12345")
        first = await answer_on(reader)
        writer.write(b"67890" + ASK)
        second = await answer_on(reader)
        writer.close()
        return first[0], second[0]

    assert play(scenario) == (b"200", b"200")


def test_requests_under_way_are_answered_at_a_stop():
    async def scenario(app, server, address):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(ASK.replace(b"page", b"late"))
        await app.begun.wait()
        server.stop()
        app.go.set()
        return await everything(reader)

    assert play(scenario).startswith(b"HTTP/1.1 200")


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
def test_every_address_is_that_of_both_families():
    with bind("::", 0, "tests", "") as bound:
        bound.listen()
        for host in ("127.0.0.1", "::1"):
            socket.create_connection((host, bound.getsockname()[1])).close()


def test_a_port_that_is_taken_is_named_with_the_way_out():
    with bind("127.0.0.1", 0, "tests", "") as first:
        first.listen()
        port = first.getsockname()[1]
        with pytest.raises(UsageError, match=rf"can't listen on 127.0.0.1:{port} for pushes: .* in use. Do that."):
            bind("127.0.0.1", port, "pushes", "Do that.")


def test_what_a_server_reads_is_out_of_reach_for_another_one_in_another_thread():
    """A consumer's probes have a thread of their own beside the pushes: what one read stood in the other's requests."""

    async def buffer():
        config = Server(Application()).config
        config.load()
        protocol = config.http_protocol_class(config=config, server_state=ServerState(), app_state={})
        return protocol.get_buffer(-1)

    pushes, probes = (asyncio.run(buffer()) for _ in range(2))
    pushes[:3] = b"his"
    probes[:3] = b"its"
    assert bytes(pushes[:3]) == b"his"
