"""`shardctl up` and `shardctl demo`: the whole fleet on this machine."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from itertools import count
from pathlib import Path
from typing import Annotated, Any

import typer

from shardctl.cli.terminal import DEFAULT_FILE, FileOption, JsonOption, say
from shardctl.errors import EXIT_DONE, ShardctlError
from shardctl.printable import printable

LOOK_SECONDS = 1.0
LOOKS_A_LINE = 5  # without a terminal

DirectoryOption = Annotated[Path, typer.Option("--dir", metavar="DIR", help="For manifests, databases and logs.")]
KeepOption = Annotated[bool, typer.Option("--keep", help="Leave the databases and logs in DIR.")]
SeedOption = Annotated[int, typer.Option("--seed", metavar="N", help="Each seed gives another stream of writes.")]
EntitiesOption = Annotated[
    int, typer.Option("--entities", metavar="N", min=1, help="How many different ones are written.")
]
DEFAULT_DIRECTORY = Path("build")


def demo(
    file: FileOption = DEFAULT_FILE,
    writes: Annotated[
        int, typer.Option("--writes", metavar="N", min=1, help="How many unique writes to publish.")
    ] = 20_000,
    entities: EntitiesOption = 5_000,
    rebalance: Annotated[
        bool, typer.Option("--rebalance", help="Add a shard under load, however many writes that takes.")
    ] = False,
    load: Annotated[
        float,
        typer.Option("--load", metavar="RATE", min=1, help="With --rebalance: publish this many writes a second."),
    ] = 300.0,
    seed: SeedOption = 1,
    keep: KeepOption = False,
    directory: DirectoryOption = DEFAULT_DIRECTORY,
    as_json: JsonOption = False,
) -> int:
    """Run the whole fleet here under load, then prove that each write took effect once, on its shard, in order."""
    _keep_grpc_quiet()
    from shardctl.cli.outcome import MoveStages, Stages, tell_move, tell_outcome
    from shardctl.fleet.load import load_fleet
    from shardctl.local import demo as show

    fleet = load_fleet(file)
    if rebalance:
        from shardctl.local import movedemo

        with MoveStages() as stages:
            moved = movedemo.run(fleet, movedemo.Plan(directory, load, entities, seed, keep), stages)
        return tell_move(moved, as_json=as_json)
    with Stages() as stages:
        report = show.run(fleet, show.Plan(directory, writes, entities, seed, keep), stages)
    return tell_outcome(report, as_json=as_json)


def up(
    file: FileOption = DEFAULT_FILE,
    load: Annotated[
        float, typer.Option("--load", metavar="RATE", min=0, help="Also publish this many generated writes a second.")
    ] = 0.0,
    entities: EntitiesOption = 5_000,
    seed: SeedOption = 1,
    keep: KeepOption = False,
    directory: DirectoryOption = DEFAULT_DIRECTORY,
) -> int:
    """Run the whole fleet here until Ctrl-C: broker, Redis, a database for each shard, and consumers.

    It follows its file: what changes there is applied to the running fleet, as `kubectl apply` would.
    """
    _keep_grpc_quiet()
    from shardctl.fleet.load import load_fleet
    from shardctl.local import manifests
    from shardctl.local.feed import Feed
    from shardctl.local.fleet import LocalFleet, new_folder
    from shardctl.local.follow import Follower
    from shardctl.local.load import Stream
    from shardctl.local.schedules import Clock

    fleet = load_fleet(file)
    rendered = manifests.write(fleet, directory / "manifests")
    say(f"{rendered} objects rendered into {directory / 'manifests'} and checked")
    local = LocalFleet(fleet, new_folder(directory), keep=keep, file=file)
    follower = Follower(local, file, fleet, directory / "manifests")
    if fleet.rebalancing:
        say(
            f"{file} has a rebalance in it. New databases have nothing to move, so the fleet starts as if it had finished."
        )
    feed = None
    try:
        with local:
            local.follow(file)
            settings = local.write_environment()
            _name_newest(settings, directory)
            _tell_how_to_use(local, file, settings)
            if load:
                stream = Stream(fleet, None, entities, seed)
                feed = Feed(fleet, local.broker.host, stream, writes_per_second=load, remember=False)
                feed.start()
            clock = Clock(local.spec, local.broker.host)
            _tell_schedules(clock)
            with contextlib.suppress(KeyboardInterrupt):  # the intended end
                _show(local, feed, follower, clock)
            say("draining and stopping …")
            if feed:
                feed.stop()
    except ShardctlError:
        keep = True  # the logs show why
        raise
    finally:
        _forget_newest(local.directory, directory)
        if not keep:
            shutil.rmtree(local.directory, ignore_errors=True)
    say(f"stopped; databases and logs are in {local.directory}" if keep else "stopped")
    return EXIT_DONE


def _name_newest(settings: Path, directory: Path) -> None:
    """`env` in `directory` leads to the settings of the run that started last: `build/run-*/env` may be several files."""
    draft = directory / f".env-{os.getpid()}"
    draft.symlink_to(settings)
    draft.replace(directory / "env")


def _forget_newest(run: Path, directory: Path) -> None:
    link = directory / "env"
    if link.is_symlink() and link.readlink().parent == run:
        link.unlink()


def _keep_grpc_quiet() -> None:
    """Before gRPC is imported: it would warn at each process that we start, though a child that execs is harmless."""
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")


def _tell_how_to_use(local: Any, file: Path, settings: Path) -> None:
    """Print a command to copy, and the addresses of everything."""
    import json
    from shlex import quote

    from sqlalchemy.engine import make_url

    from shardctl.local.load import Stream
    from shardctl.local.servers.process import HOST

    write = next(iter(Stream(local.spec, None, 1))).write
    example = json.dumps({"type": write.type, "body": dict(write.body)}, ensure_ascii=False)
    given = "" if file == DEFAULT_FILE else f" -f {quote(str(file))}"
    say("")
    say(f"publish   . {quote(str(settings))} && echo {quote(example)} | shardctl publish{given}")
    say(f"broker    {local.broker.host}    (REST: {local.broker.rest_url})")
    say(f"redis     redis://{HOST}:{local.redis.port}/0")
    for shard, text in local.databases.items():
        url = make_url(text)
        place = f"{url.username}@{url.host}:{url.port}" if url.host else ""
        say(f"{shard:<9} {url.get_backend_name()}://{place}/{url.database}")
    say(
        f"passwords {settings}    (readable by you alone; after `. {quote(str(settings))}`, psql and redis-cli use them)"
    )
    say(f"logs      {local.directory / 'consumers'}")
    say(f"look      . {quote(str(settings))} && shardctl status{given}    (or shardctl ui)")
    say("Ctrl-C stops it.")
    say("")


def _show(local: Any, feed: Any, follower: Any, clock: Any) -> None:
    """Show the fleet repeatedly; restart processes that died, and apply changes of the file."""
    from rich.console import Console
    from rich.live import Live

    from shardctl.local.board import Board
    from shardctl.status.drawing import line, table

    board = Board(local)
    console = Console(stderr=True)
    if not console.is_terminal:
        board.take()  # rates are those since the previous look
        for look in count(1):
            time.sleep(LOOK_SECONDS)
            _look_after(local, feed, follower, clock, say)
            if look % LOOKS_A_LINE == 0:
                say(f"{time.strftime('%H:%M:%S')}  {line(board.take())}   {board.foot()}")

    def tell(text: str) -> None:
        console.print(printable(text), highlight=False, markup=False)

    with Live(table(board.take(), board.foot()), console=console, auto_refresh=False) as live:
        while True:
            time.sleep(LOOK_SECONDS)
            _look_after(
                local,
                feed,
                follower,
                clock,
                tell,
            )
            live.update(table(board.take(), board.foot()), refresh=True)


def _tell_schedules(clock: Any) -> None:
    for job, due in clock.upcoming():
        when = f"next at {due.astimezone():%Y-%m-%d %H:%M %Z}" if due else "never comes"
        say(f"schedule  {job.schedule.name}: {when}")


def _look_after(local: Any, feed: Any, follower: Any, clock: Any, tell: Any) -> None:
    follower.look(tell)
    clock.follow(local.spec)
    clock.look(tell)
    if feed and not feed.running:
        feed.join()  # raises what ended it
    for consumer in local.revive():
        tell(f"{consumer.name} ended unexpectedly (see {consumer.log_file}); restarted")
