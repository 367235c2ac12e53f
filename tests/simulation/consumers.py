"""The simulated server's consumers: pulled durables with redelivery, and pushed snapshots."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tests.simulation.streams import (
    Pending,
    Pull,
    PullConsumer,
    PushConsumer,
    StoredMessage,
    Stream,
    matches,
)

if TYPE_CHECKING:
    from tests.simulation.client import SimClient
    from tests.simulation.server import Server

_NANO = 1_000_000_000


class Consumers:
    """All consumers of a server."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.pulls: dict[str, PullConsumer] = {}
        self._pushes: dict[str, PushConsumer] = {}
        self.redelivered = 0
        self.on_acknowledged: Callable[[PullConsumer, StoredMessage], None] = lambda _by, _what: (
            None
        )

    def add(self, consumer: PullConsumer) -> PullConsumer:
        self.pulls[consumer.name] = consumer
        return consumer

    def delete(self, name: str) -> None:
        """Remove a consumer; who pulls from it is told."""
        push = self._pushes.pop(name, None)
        if push is not None:
            push.deleted = True
        pull = self.pulls.pop(name, None)
        if pull is not None:
            pull.deleted = True
            for request in pull.pulls:
                self._status(request, "409", "Consumer Deleted", request.left)
            pull.pulls.clear()

    def feed(self, stream: Stream) -> None:
        """Deliver what has come to a stream."""
        for consumer in tuple(self.pulls.values()):
            if consumer.stream is stream:
                self._feed_pull(consumer)
        for push in tuple(self._pushes.values()):
            if push.stream is stream:
                message = stream.messages.get(stream.last_seq)
                wanted = push.config["filter_subject"].split(".")
                if message is not None and matches(message.tokens, wanted):
                    self._push(push, message, 0)

    # -- pulled ----------------------------------------------------------------------------------

    def pull(self, client: SimClient, name: str, inbox: str, request: dict[str, Any]) -> None:
        """Take a request for messages."""
        consumer = self.pulls.get(name)
        now = self._server.loop.now
        if consumer is None:
            self._server.tell(inbox, "", b"", {"Status": "503"})
            return
        pull = Pull(
            client,
            client.epoch,
            inbox,
            request["batch"],
            now + request["expires"] / _NANO,
            request["idle_heartbeat"] / _NANO,
            now,
        )
        consumer.pulls.append(pull)
        loop = self._server.loop
        loop.call_in(loop.system, pull.heartbeat, self._beat, consumer, pull)
        self._feed_pull(consumer)

    def _valid(self, pull: Pull) -> bool:
        return (
            pull.connection.alive
            and pull.epoch == pull.connection.epoch
            and self._server.interested(pull.inbox)
        )

    def _beat(self, consumer: PullConsumer, pull: Pull) -> None:
        """Say that there is nothing, or that a request's time is over."""
        if pull not in consumer.pulls or consumer.deleted:
            return
        now = self._server.loop.now
        if not self._valid(pull):
            consumer.pulls.remove(pull)
            return
        if now >= pull.expires_at:
            consumer.pulls.remove(pull)
            self._status(pull, "408", "Request Timeout", pull.left)
            return
        if now - pull.told_at >= pull.heartbeat * 0.999:
            self._status(pull, "100", "Idle Heartbeat", None)
            pull.told_at = now
        loop = self._server.loop
        loop.call_in(
            loop.system, min(pull.heartbeat, pull.expires_at - now), self._beat, consumer, pull
        )

    def _status(self, pull: Pull, status: str, description: str, left: int | None) -> None:
        headers = {"Status": status, "Description": description}
        if left is not None:
            headers["Nats-Pending-Messages"] = str(left)
            headers["Nats-Pending-Bytes"] = "0"
        self._server.tell(pull.inbox, "", b"", headers)

    def _feed_pull(self, consumer: PullConsumer) -> None:
        if not consumer.pulls or consumer.stream.unavailable_until > self._server.loop.now:
            return
        consumer.pulls[:] = [pull for pull in consumer.pulls if self._valid(pull)]
        random = self._server.faults.random
        while consumer.pulls:
            message = consumer.take()
            if message is None:
                return
            count = len(consumer.pulls)
            pull = consumer.pulls[0 if count == 1 else int(random.random() * count)]
            self._deliver(consumer, pull, message)
            pull.left -= 1
            if pull.left <= 0:
                consumer.pulls.remove(pull)

    def _deliver(self, consumer: PullConsumer, pull: Pull, message: StoredMessage) -> None:
        server = self._server
        seq = message.seq
        deliveries = consumer.deliveries[seq] = consumer.deliveries.get(seq, 0) + 1
        if deliveries > 1:
            self.redelivered += 1
        consumer.consumer_seq += 1
        consumer.generation += 1
        wait = consumer.ack_wait
        if server.faults.happens("redelivered_early", 0.02):
            wait *= server.faults.random.random() * 0.2
        self._await(consumer, message, wait)
        pull.told_at = server.loop.now
        reply = (
            f"$JS.ACK.{consumer.stream.name}.{consumer.name}.{deliveries}.{seq}"
            f".{consumer.consumer_seq}.{int(message.time * _NANO)}.0"
        )
        server.trace(
            "deliver",
            pull.connection.process.name,
            f"{seq} {message.subject}" + (f" (time {deliveries})" if deliveries > 1 else ""),
        )
        server.tell(
            pull.inbox,
            reply,
            message.body,
            message.headers or None,
            lost="lost_delivery",
            shown=message.subject,
        )

    def _await(self, consumer: PullConsumer, message: StoredMessage, seconds: float) -> None:
        loop = self._server.loop
        consumer.generation += 1
        pending = Pending(message, loop.now + seconds, consumer.generation)
        consumer.pending[message.seq] = pending
        loop.call_in(loop.system, seconds, self._overdue, consumer, pending)

    def _overdue(self, consumer: PullConsumer, pending: Pending) -> None:
        seq = pending.message.seq
        if consumer.pending.get(seq) is pending and not consumer.deleted:
            del consumer.pending[seq]
            consumer.again.append(seq)
            self._feed_pull(consumer)

    def acknowledge(self, subject: str, word: bytes) -> None:
        """Take an acknowledgement; the server asks not which delivery it is for."""
        parts = subject.split(".")
        consumer = self.pulls.get(parts[3])
        if consumer is None:
            return
        seq = int(parts[5])
        pending = consumer.pending.get(seq)
        if word.startswith(b"+ACK") and seq in consumer.stream.messages:
            self.on_acknowledged(consumer, consumer.stream.messages[seq])
        if word.startswith((b"+ACK", b"+TERM")):
            consumer.pending.pop(seq, None)
            if seq in consumer.again:
                consumer.again.remove(seq)
        elif pending is None:
            return
        elif word.startswith(b"+WPI"):
            self._await(consumer, pending.message, consumer.ack_wait)
        elif word.startswith(b"-NAK"):
            delay = json.loads(word[4:])["delay"] / _NANO if len(word) > 4 else 0.0
            self._await(consumer, pending.message, delay)

    def forget(self, name: str) -> None:
        """Let a durable lose what it knew of deliveries: they come again, as for the first time."""
        consumer = self.pulls[name]
        lost = len(list(consumer.forget()))
        if lost:
            self._server.trace("fault", "server", f"{name} forgets {lost} deliveries")
        self._feed_pull(consumer)

    # -- pushed ----------------------------------------------------------------------------------

    def start_push(self, push: PushConsumer) -> int:
        """Deliver the last message of every subject that matches; return how many there are."""
        self._pushes[push.config["name"]] = push
        found = push.stream.select(push.config["filter_subject"])
        for index, message in enumerate(found):
            self._push(push, message, len(found) - index - 1)
        loop = self._server.loop
        beat = push.config["idle_heartbeat"] / _NANO
        loop.call_in(loop.system, beat, self._beat_push, push, beat)
        return len(found)

    def _push(self, push: PushConsumer, message: StoredMessage, pending: int) -> None:
        server = self._server
        push.consumer_seq += 1
        push.told_at = server.loop.now
        reply = (
            f"$JS.ACK.{push.stream.name}.{push.config['name']}.1.{message.seq}"
            f".{push.consumer_seq}.{int(message.time * _NANO)}.{pending}"
        )
        body = b"" if push.config.get("headers_only") else message.body
        server.tell(
            push.inbox,
            reply,
            body,
            message.headers or None,
            lost="lost_delivery",
            shown=message.subject,
        )

    def _beat_push(self, push: PushConsumer, beat: float) -> None:
        server = self._server
        if push.deleted:
            return
        if not self._server.interested(push.inbox):
            self._pushes.pop(push.config["name"], None)
            return
        if server.loop.now - push.told_at >= beat * 0.999:
            headers = {
                "Status": "100",
                "Description": "Idle Heartbeat",
                "Nats-Last-Consumer": str(push.consumer_seq),
            }
            server.tell(push.inbox, "", b"", headers)
        server.loop.call_in(server.loop.system, beat, self._beat_push, push, beat)
