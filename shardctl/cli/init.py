"""`shardctl init`: a shards.yaml to start from."""

from __future__ import annotations

from typing import Annotated

import typer

from shardctl.cli.terminal import DEFAULT_FILE, FileOption, say
from shardctl.errors import EXIT_DONE, ShardctlError


def init(
    shards: Annotated[int, typer.Option("--shards", metavar="N", min=1, max=256, help="How many shards.")] = 3,
    file: FileOption = DEFAULT_FILE,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
) -> int:
    """Write a commented shards.yaml to start from."""
    from shardctl import starter

    content = starter.text(shards)
    try:
        with file.open("w" if force else "x", encoding="utf-8") as out:
            out.write(content)
    except FileExistsError as error:
        raise ShardctlError(f"{file} is there already. --force writes over it; -f names another.") from error
    except OSError as error:
        raise ShardctlError(f"{file}: can't be written: {error.strerror}.") from error
    say(f"{file}: {shards} shard{'s' if shards > 1 else ''}. Next: edit project and image, then `shardctl validate`.")
    return EXIT_DONE
