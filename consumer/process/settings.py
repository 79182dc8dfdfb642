"""Where a consumer's settings come from: the shard's slice of configuration in a file, URLs in the environment or in files."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pydantic import ValidationError
from sqlalchemy.engine import URL

from consumer.process.credentials import Credentials, Login, Parsed
from consumer.redis.url import Kind, RedisUrl, kind_of, parse
from shardctl.errors import UsageError
from shardctl.fleet.shardconfig import ShardConfig
from shardctl.fleet.spec_errors import path_text
from shardctl.serving.sockets import EVERY_ADDRESS
from shardctl.shard import databaseurl


@dataclass(frozen=True, slots=True)
class Settings:
    config: ShardConfig
    database_url: URL
    redis_url: RedisUrl
    port: int  # of /health, /ready and /metrics
    host: str
    pubsub_emulator: str | None  # its host:port; None is the service itself
    replica: str  # this process's name in logs
    database_login: Callable[[], Login] | None = None  # for each new connection, instead of the URL's
    redis_logins: Callable[[], Login] | None = None
    sentinel_logins: Callable[[], Login] | None = None
    push_port: int = 8081  # where pushes arrive, for `delivery: push`
    push_keys_url: str | None = None  # where the issuer of their tokens publishes its keys; None is Google's


def load(path: Path, environment: Mapping[str, str] = os.environ) -> Settings:
    """Read the settings. Raises UsageError that names what is missing or wrong."""
    try:
        config = ShardConfig.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path}: can't be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(
            f"{path}: {path_text(first['loc'])}: {first['msg']}. `shardctl render` writes this file."
        ) from error
    database, database_login = _url(environment, "DATABASE_URL", _parsed_database)
    kind = kind_of(config)
    redis, redis_logins = _url(environment, "REDIS_URL", partial(_parsed_redis, kind))
    _, sentinel_logins = _url(environment, "REDIS_URL", partial(_parsed_sentinels, kind))
    redis_url = parse(redis, kind)
    if config.redis_iam and any(redis_url.login):
        raise UsageError("REDIS_URL has a login, and consumers log in to this Redis by IAM: leave it out of the URL")
    return Settings(
        config,
        _database_url(database),
        redis_url,
        _port(environment, "PORT", "8080"),
        environment.get("HOST") or EVERY_ADDRESS,
        environment.get("PUBSUB_EMULATOR_HOST") or None,
        environment.get("POD_NAME") or f"{socket.gethostname()}-{os.getpid()}",
        database_login,
        redis_logins,
        sentinel_logins if kind == "sentinel" else None,
        _port(environment, "PUSH_PORT", "8081"),
        environment.get("PUSH_KEYS_URL") or None,
    )


def _url(
    environment: Mapping[str, str], name: str, parse: Callable[[str], Parsed]
) -> tuple[str, Callable[[], Login] | None]:
    """The URL of a variable, or of the file that `…_FILE` names; and then where each new connection's login comes from."""
    text, file = environment.get(name), environment.get(f"{name}_FILE")
    if text and file:
        raise UsageError(f"{name} and {name}_FILE are both set: unset one.")
    if file:
        credentials = Credentials(f"{name}_FILE", Path(file), parse)
        return credentials.url, credentials
    if not text:
        raise UsageError(
            f"neither {name} nor {name}_FILE is set. The rendered Deployment takes one of them from a Secret."
        )
    parse(text)
    return text, None


def _port(environment: Mapping[str, str], name: str, default: str) -> int:
    text = environment.get(name, default)
    if not text.isdecimal() or int(text) > 65_535:
        raise UsageError(f"{name}={text!r} isn't a port number")
    return int(text)


def _database_url(text: str) -> URL:
    try:
        return databaseurl.parse(text)
    except databaseurl.DatabaseUrlError as error:
        raise UsageError(f"DATABASE_URL: {error}") from None  # the text holds a password


def _parsed_database(text: str) -> Parsed:
    url = _database_url(text)
    return (url.username, url.password), (url.drivername, url.host, url.port, url.database, url.query)


def _parsed_redis(kind: Kind, text: str) -> Parsed:
    url = parse(text, kind)
    return url.login, url.options


def _parsed_sentinels(kind: Kind, text: str) -> Parsed:
    url = parse(text, kind)
    return url.sentinel_login, url.options
