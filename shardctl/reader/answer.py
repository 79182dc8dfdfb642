"""What a read over all shards returns, and what it lacks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from shardctl.fleet.keyspace import SlotSet
from shardctl.reader.errors import ReadError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Failure:
    """What a scattered read lacks: these slots. `shard` is empty where no single shard is to blame."""

    shard: str
    slots: SlotSet
    reason: str

    def __str__(self) -> str:
        slots = f"slots {self.slots}: " if self.slots.ranges else ""
        return f"{f'shard {self.shard}: ' if self.shard else ''}{slots}{self.reason}"


@dataclass(frozen=True, slots=True)
class Rows(Generic[T]):
    """The rows of all shards, in the order that was asked for. `failures` is empty unless the caller takes partial answers."""

    rows: tuple[T, ...]
    failures: tuple[Failure, ...] = ()

    def __iter__(self) -> Iterator[T]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def scalars(self) -> list[Any]:
        """The first column of each row, such as the objects of `select(Order)`."""
        return [row[0] for row in self.rows]  # type: ignore[index]


class PartialReadError(ReadError):
    """Some slots could not be read. `failures` says which and why; `rows` holds what the others returned."""

    def __init__(self, failures: tuple[Failure, ...], rows: Rows[Any]) -> None:
        self.failures, self.rows = failures, rows
        more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
        super().__init__(
            f"the read is incomplete: {failures[0]}{more}. Try again, or pass partial=True to take what there is."
        )
