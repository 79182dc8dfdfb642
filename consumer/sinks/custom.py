"""Sinks of the user's own, by entry point `package.module:factory`: loaded at the start, and their bugs contained."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from sqlalchemy import Connection
from sqlalchemy import exc as sa
from sqlalchemy.exc import DBAPIError

from consumer.database import sessions
from consumer.delivery import Delivery
from consumer.errors import DataFaultError, PermanentError, TableNotReadyError, TransientError
from consumer.sinks.base import Sink, check_key, json_object
from shardctl.errors import UsageError
from shardctl.fleet.settings.messagetypes import MessageType
from shardctl.shard import changes
from shardctl.shard.changes import Change
from shardctl.shard.schema import REASON_LENGTH

log = logging.getLogger(__name__)

SINK_ERROR = "sink_error"  # the reason of a message on which a sink raised an error that it must not raise

# Failures around the sink: the store knows what the database's errors mean, and the others here are tried again. Any other error
# of SQLAlchemy, such as a missing parameter or a missing row, is a bug.
_MAY_PASS = (TransientError, DBAPIError, sa.TimeoutError, sa.DisconnectionError, OSError)


class SinkError(UsageError):
    """A sink can't be loaded: says which, why, and what to do."""

    def __init__(self, message_type: str, path: str, why: str, fix: str) -> None:
        super().__init__(f"message_types.{message_type}.sink: {path}: {why}. Fix: {fix}.")


class CustomSink:
    """A sink of the user's, with the guarantees that the consumer needs.

    A bug must neither lose a message nor stop the shard because of one: any error of a sink except its documented ones and the
    database's is the fault of the message on which it is raised, with the reason `sink_error`.
    """

    def __init__(self, path: str, sink: Sink, kinds: dict[str, MessageType]) -> None:
        self._path, self._sink, self._kinds = path, sink, kinds
        self._ended_transaction = f"the sink {path} ended the transaction that it was given: it must not"

    def check(self, delivery: Delivery) -> None:
        kind = self._kinds[delivery.message_type]
        check_key(delivery, kind)
        if kind.time_bucket:
            delivery.body = json_object(delivery)  # the slot follows from a field of it
        try:
            self._sink.check(delivery)
        except (PermanentError, DataFaultError) as fault:
            raise PermanentError(*_storable(fault)) from fault
        except Exception as error:
            self._log_bug("check", delivery, error)
            raise PermanentError(*_storable(_bug(error))) from error

    def apply(self, connection: Connection, writes: Sequence[Delivery]) -> int:
        transactions = [t for t in (connection.get_transaction(), connection.get_nested_transaction()) if t]
        try:
            types = {write.message_type for write in writes}
            with sessions.needed_by(types), _translated_by_sqlalchemy(connection):
                stale = self._sink.apply(connection, writes)
        except (*_MAY_PASS, TableNotReadyError):
            raise
        except (DataFaultError, PermanentError) as fault:
            raise DataFaultError(*_storable(fault)) from fault
        except MemoryError as error:
            raise TransientError(f"the sink {self._path} ran out of memory") from error
        except Exception as error:
            if not all(transaction.is_active for transaction in transactions):
                raise TransientError(self._ended_transaction) from error
            if len(writes) == 1:  # if there are more, the search calls it again
                self._log_bug("apply", writes[0], error)
            raise DataFaultError(*_storable(_bug(error))) from error
        if not all(transaction.is_active for transaction in transactions):
            raise TransientError(self._ended_transaction)
        return stale if isinstance(stale, int) else 0

    def changes(self, writes: Sequence[Delivery]) -> Iterator[Change]:
        """It may write any rows for a message, all of them under the message's routing key."""
        for write in writes:
            yield changes.of_routing_key(write.slot, write.partition_key)

    def _log_bug(self, call: str, delivery: Delivery, error: Exception) -> None:
        log.error(
            "the sink %s raised in %s: a bug of the sink; the message is dead-lettered or parked",
            self._path,
            call,
            exc_info=error,
            extra={
                "action": SINK_ERROR,
                "slot": delivery.slot,
                "message_id": delivery.message_id,
                "partition_key": delivery.partition_key,
                "message_type": delivery.message_type,
            },
        )


@contextmanager
def _translated_by_sqlalchemy(connection: Connection) -> Iterator[None]:
    """For a sink that calls the driver past SQLAlchemy."""
    try:
        yield
    except connection.dialect.loaded_dbapi.Error as error:
        raise DBAPIError(None, None, error) from error


def load(message_type: str, path: str, kinds: dict[str, MessageType]) -> CustomSink:
    """Import the module and call the factory, without arguments. Raises SinkError."""
    module_name, _, name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        why = f"{module_name} can't be imported ({type(error).__name__}: {error})"
        fix = "put the package on the consumer's Python path, in its image or by PYTHONPATH"
        raise SinkError(message_type, path, why, fix) from error
    factory = getattr(module, name, None)
    if not callable(factory):
        what = "has no" if factory is None else "holds something that can't be called as"
        raise SinkError(
            message_type, path, f"{module_name} {what} {name}", "name a function or class that makes the sink"
        )
    try:
        sink = factory()
    except Exception as error:
        why = f"{name}() raised {type(error).__name__}: {error}"
        raise SinkError(message_type, path, why, "fix the factory; it is called without arguments") from error
    lacking = [call for call in ("check", "apply") if not callable(getattr(sink, call, None))]
    if lacking:
        why = f"{name}() gave {_shown(sink)}, which has no {' and no '.join(lacking)}"
        fix = "return an object with check(delivery) and apply(connection, writes), as docs/sinks.md says"
        raise SinkError(message_type, path, why, fix)
    return CustomSink(path, sink, kinds)


def _bug(error: Exception) -> DataFaultError:
    return DataFaultError(SINK_ERROR, f"{type(error).__name__}: {error}")


def _storable(fault: PermanentError | DataFaultError) -> tuple[str, str]:
    """Reason and detail as attributes and text columns can hold them."""
    return _clean(fault.reason)[:REASON_LENGTH], _clean(fault.detail)


def _clean(text: object) -> str:
    return str(text).encode(errors="replace").decode().replace("\x00", "\N{REPLACEMENT CHARACTER}")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
