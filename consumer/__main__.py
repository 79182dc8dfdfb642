"""`python -m consumer --config FILE`: how the process starts. What it then runs is in `consumer.process.run`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from consumer.process import collector


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m consumer", description="One replica of one shard's consumer.")
    parser.add_argument(
        "--config", type=Path, required=True, help="the shard's slice of configuration, as `shardctl render` writes it"
    )
    path = parser.parse_args().config
    collector.hold()
    _load_redis()
    from consumer.process.run import run

    return run(path)


def _load_redis() -> None:
    """Load Redis' client without OpenTelemetry, which it uses if it is installed, for metrics that a consumer doesn't need."""
    absent = "opentelemetry"
    if absent in sys.modules:  # this process is instrumented
        return
    sys.modules[absent] = None  # type: ignore[assignment] # which is how Python says that it can't be imported
    try:
        import redis.asyncio  # noqa: F401
    finally:
        del sys.modules[absent]


if __name__ == "__main__":
    sys.exit(main())
