"""Real PostgreSQL, MariaDB and Redis servers as child processes: no root, no containers, loopback only."""

from shardctl.local.servers.mariadb import MariaDBServer
from shardctl.local.servers.postgres import PostgresServer
from shardctl.local.servers.process import BinaryMissingError, ServerError, StartError
from shardctl.local.servers.redis import RedisServer

__all__ = ["BinaryMissingError", "MariaDBServer", "PostgresServer", "RedisServer", "ServerError", "StartError"]
