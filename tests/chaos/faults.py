"""What can be done to a running fleet: faults of consumers, of the broker, and all of them by name."""

from __future__ import annotations

import signal
import time
from typing import ClassVar

from tests.chaos.fault import Aim, Fault, GoneError
from tests.chaos.scene import Scene
from tests.chaos.serverfaults import (
    PostgresKill,
    PostgresLock,
    PostgresPause,
    PostgresReadonly,
    PostgresRestart,
    PostgresTerminateBackends,
    RedisFlush,
    RedisPause,
    RedisStop,
)

CONSUMER, BROKER = "consumer", "broker"
GRACE_SECONDS = 15.0  # as a pod's: what hasn't ended by then is killed

# --- consumers --------------------------------------------------------------------------------------------------------


class ConsumerFault(Fault):
    kind = CONSUMER
    seconds = (1.0, 6.0)

    def __init__(self, scene: Scene, aim: Aim) -> None:
        super().__init__(scene, aim)
        if aim.shard not in self.local.replicas:
            raise GoneError
        self.consumer = self.local.replicas[aim.shard][aim.replica]

    @classmethod
    def resource(cls, aim: Aim) -> str:
        return f"{aim.shard}-{aim.replica}"

    @classmethod
    def target(cls, aim: Aim) -> str:
        return cls.resource(aim)

    def heal(self) -> None:
        if not self.consumer.running:
            self.consumer.revive()


class ConsumerKill(ConsumerFault):
    """SIGKILL, as when a node dies."""

    def inject(self) -> None:
        self.consumer.kill()


class ConsumerPause(ConsumerFault):
    """SIGSTOP for longer than its leases and locks live: it wakes up holding what others have by then."""

    seconds = (11.0, 15.0)

    def inject(self) -> None:
        self.consumer.pause()

    def heal(self) -> None:
        self.consumer.resume()


class ConsumerTerm(ConsumerFault):
    """SIGTERM, as when a pod is replaced; SIGKILL after the grace period."""

    seconds = (2.0, 7.0)

    def inject(self) -> None:
        self.consumer.terminate()
        self._deadline = time.monotonic() + GRACE_SECONDS

    def heal(self) -> None:
        self.consumer.stop(max(0.1, self._deadline - time.monotonic()))
        if self.consumer.exit_code == -signal.SIGKILL:
            self.scene.overstayed.append(self.consumer.name)
        super().heal()


# --- the broker -------------------------------------------------------------------------------------------------------


class BrokerPause(Fault):
    """Is frozen: leases end although their holder never let go of them."""

    kind = BROKER
    seconds = (2.0, 8.0)  # less than a call for its faults waits

    def inject(self) -> None:
        self.local.broker.pause()

    def heal(self) -> None:
        self.local.broker.resume()


class BrokerFault(Fault):
    """A habit of the broker; several may be in force at once."""

    kind = BROKER
    seconds = (3.0, 10.0)
    settings: ClassVar[dict[str, float]]

    @classmethod
    def resource(cls, aim: Aim) -> str:
        return cls.__name__

    def inject(self) -> None:
        self.scene.set_broker_habit(type(self).__name__, dict(self.settings))

    def heal(self) -> None:
        self.scene.set_broker_habit(type(self).__name__, None)


class BrokerDuplicates(BrokerFault):
    settings: ClassVar = {"duplicate_rate": 0.05, "replay_acked": True}


class BrokerEarlyExpiry(BrokerFault):
    settings: ClassVar = {"early_expiry_rate": 0.03}


class BrokerDropAcks(BrokerFault):
    settings: ClassVar = {"drop_ack_rate": 0.1}


class BrokerCutStreams(BrokerFault):
    settings: ClassVar = {"cut_stream_rate": 0.1}


class BrokerUnavailable(BrokerFault):
    settings: ClassVar = {"unavailable_rate": 0.5}


class BrokerDelay(BrokerFault):
    settings: ClassVar = {"delay_rate": 0.1, "delay_seconds": 2.0}


class BrokerLostReply(BrokerFault):
    settings: ClassVar = {"lost_reply_rate": 0.3}


class BrokerReorder(BrokerFault):
    """Of what has no ordering key."""

    settings: ClassVar = {"reorder_rate": 0.5, "delay_rate": 0.1, "delay_seconds": 4.0}


FAULTS: dict[str, type[Fault]] = {
    "consumer_kill": ConsumerKill,
    "consumer_pause": ConsumerPause,
    "consumer_term": ConsumerTerm,
    "redis_stop": RedisStop,
    "redis_pause": RedisPause,
    "redis_flush": RedisFlush,
    "postgres_restart": PostgresRestart,
    "postgres_kill": PostgresKill,
    "postgres_terminate_backends": PostgresTerminateBackends,
    "postgres_lock": PostgresLock,
    "postgres_readonly": PostgresReadonly,
    "postgres_pause": PostgresPause,
    "broker_duplicates": BrokerDuplicates,
    "broker_early_expiry": BrokerEarlyExpiry,
    "broker_drop_acks": BrokerDropAcks,
    "broker_cut_streams": BrokerCutStreams,
    "broker_unavailable": BrokerUnavailable,
    "broker_delay": BrokerDelay,
    "broker_lost_reply": BrokerLostReply,
    "broker_pause": BrokerPause,
}
# What is worth its time only while slots move.
MOVING_FAULTS: dict[str, type[Fault]] = {"broker_reorder": BrokerReorder}
EVERY_FAULT = FAULTS | MOVING_FAULTS
