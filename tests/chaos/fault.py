"""What can be done to a running fleet, a class a fault: `inject` it, `hold` it up while it lasts, `heal` it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tests.chaos.scene import Scene


@dataclass(frozen=True, slots=True)
class Aim:
    """Whom a fault hits, drawn with the schedule. A fault takes of it what it needs."""

    shard: str
    replica: int  # of the shard, from 0
    table: str


class GoneError(Exception):
    """What the fault aims at isn't there now, such as a shard that a rebalance has taken away."""


class Fault:
    """Two faults on one resource never overlap. `seconds` are the shortest and the longest it lasts."""

    kind: ClassVar[str]
    seconds: ClassVar[tuple[float, float]]

    def __init__(self, scene: Scene, aim: Aim) -> None:
        """Raises GoneError."""
        self.scene, self.local, self.aim = scene, scene.local, aim

    @classmethod
    def resource(cls, aim: Aim) -> str:
        return cls.kind

    @classmethod
    def target(cls, aim: Aim) -> str:
        """What it hits, for people."""
        return ""

    def inject(self) -> None: ...

    def hold(self) -> None:
        """Called several times a second until the fault is healed."""

    def heal(self) -> None: ...
