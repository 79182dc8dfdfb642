"""`python -m shardctl.broker`: the broker as a process of its own."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import logging
import sys

from shardctl.broker.errors import RefusedError
from shardctl.broker.faults import Faults
from shardctl.broker.server import serve
from shardctl.errors import EXIT_DONE, EXIT_USAGE, ShardctlError


def main(arguments: list[str] | None = None) -> int:
    """Every fault of `Faults` is an option: `--duplicate-rate 0.1 --seed 7`."""
    parser = argparse.ArgumentParser(prog="python -m shardctl.broker", description="An in-memory Pub/Sub.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8085, help="0 takes any free port (default: %(default)s)")
    parser.add_argument("--rest-port", type=int, help="where to serve the REST API (default: nowhere)")
    parser.add_argument("--keys-port", type=int, help="where to publish the key of pushes' tokens (default: nowhere)")
    for field in dataclasses.fields(Faults):
        option = "--" + field.name.replace("_", "-")
        if isinstance(field.default, bool):
            parser.add_argument(option, action="store_true")
        else:
            parser.add_argument(option, type=type(field.default), default=field.default)
    options = vars(parser.parse_args(arguments))
    logging.basicConfig(stream=sys.stderr, level=logging.INFO)
    address, port = options.pop("host"), options.pop("port")
    ports = {name: options.pop(name) for name in ("rest_port", "keys_port")}
    try:
        asyncio.run(serve(address, port, **ports, faults=Faults.from_mapping(options)))
    except RefusedError as error:
        print(error, file=sys.stderr)
        return EXIT_USAGE
    except ShardctlError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
