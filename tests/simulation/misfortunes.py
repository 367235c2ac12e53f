"""What befalls the installation as a whole: processes, connections, leaders, leases."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from penstock.contracts import subjects
from tests.simulation.actors import Actor
from tests.simulation.client import SimClient
from tests.simulation.streams import Publish

if TYPE_CHECKING:
    from tests.simulation.world import World


class Misfortunes:
    """Strikes now and then, until it is told to end."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._kinds: dict[str, Callable[[], bool]] = {
            "pause": self._pause,
            "disconnect": self._disconnect,
            "no_leader": self._no_leader,
            "deliveries_forgotten": self._forget,
            "consumer_deleted": self._delete_consumer,
            "server_restart": self._restart,
            "lease_lost": self._lose_lease,
            "engine_crash": lambda: self._kill([*self._world.engines]),
            "runner_crash": lambda: self._kill([*self._world.runners]),
        }

    def strike(self) -> None:
        """Let something happen, perhaps, and draw when the next thing does."""
        world = self._world
        faults, random, loop = world.faults, world.random, world.loop
        if not faults.active:
            return
        loop.call_in(loop.system, random.expovariate(1 / 2.0), self.strike)
        kind = random.choice(list(self._kinds))
        if not faults.happens(kind, 0.5):
            return
        if not self._kinds[kind]() or kind.endswith("_crash"):
            faults.counts[kind] -= 1  # it could not; or it is counted when a process dies
        world.trace("fault", kind, "")

    def end(self) -> None:
        """Let everything work from now on."""
        world = self._world
        world.trace("fault", "healed", "no faults from now on")
        world.faults.active = False
        for stream in world.server.streams.values():
            stream.unavailable_until = 0.0
        for process in world.processes:
            process.stall_in = process.steps_left = process.sends_left = -1
            world.loop.resume(process)
        for client in tuple(world.server.clients):
            world.loop.call_in(client.process, 0.0, client.reconnect)
        for stream in world.server.streams.values():
            world.server.consumers.feed(stream)

    # -- kinds -----------------------------------------------------------------------------------

    def _seconds(self) -> float:
        random = self._world.random
        return random.choice([0.2, 2.0, 8.0]) * random.random()

    def _actor(self) -> Actor:
        return self._world.random.choice([*self._world.engines, *self._world.runners])

    def _pause(self) -> bool:
        process = self._actor().process
        if process is not None:
            self._world.loop.pause(process, self._seconds())
        return process is not None

    def _disconnect(self) -> bool:
        users: Actor = self._world.users
        actor = users if self._world.random.random() < 0.2 else self._actor()
        client: SimClient | None = actor.client
        if client is not None:
            client.disconnect(self._seconds())
        return client is not None

    def _no_leader(self) -> bool:
        world, seconds = self._world, self._seconds()
        name = subjects.RUNS
        if world.random.random() < 0.6:
            name = world.random.choice(list(world.server.streams))
        stream = world.server.streams[name]
        stream.unavailable_until = world.loop.now + seconds
        world.loop.call_in(world.loop.system, seconds, world.server.consumers.feed, stream)
        return True

    def _forget(self) -> bool:
        consumers = self._world.server.consumers
        consumers.forget(self._world.random.choice(list(consumers.pulls)))
        return True

    def _delete_consumer(self) -> bool:
        consumers = self._world.server.consumers
        names = [name for name in consumers.pulls if not name.startswith("runner")]
        if names:
            consumers.delete(self._world.random.choice(names))
        return bool(names)

    def _restart(self) -> bool:
        self._world.server.restart()
        return True

    def _lose_lease(self) -> bool:
        world = self._world
        bucket = world.server.streams[f"KV_{subjects.LEASES}"]
        key = subjects.shard_lease_key(world.random.randrange(world.settings.shards))
        bucket.store(Publish(f"$KV.{subjects.LEASES}.{key}", b"", {"KV-Operation": "DEL"}))
        return True

    def _kill(self, side: list[Actor]) -> bool:
        process = self._world.random.choice(side).process
        if process is None or self._world.crashes_left <= 0:
            return False
        self._world.loop.kill(process, "killed")
        return True
