"""The simulated nats-server: core subjects, streams, schedules, key TTLs and the JetStream API.

Single-threaded and durable: what is acknowledged stays. What is not promised is not kept either:
reads may lag, acknowledgements, deliveries and answers get lost, consumers forget, schedules fire
late, twice or never, and for a while a stream has no leader.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

from penstock.bus.client import header_block
from penstock.bus.topology import consumer_table, stream_table
from penstock.contracts import subjects
from penstock.settings import CoreSettings
from tests.simulation.client import SimClient, SimSubscription, as_json
from tests.simulation.clock import EPOCH
from tests.simulation.consumers import Consumers
from tests.simulation.faults import Faults
from tests.simulation.loop import SimLoop
from tests.simulation.streams import (
    Publish,
    PullConsumer,
    PushConsumer,
    Refused,
    StoredMessage,
    Stream,
    matches,
)

Headers = dict[str, str]
Trace = Callable[[str, str, str], None]

_STREAM_OF = {
    "run": subjects.RUNS,
    "timer": subjects.TIMERS,
    "delta": subjects.DELTAS,
    "dead": subjects.DEAD,
    "canary": subjects.CANARY,
}
_LEASES = f"KV_{subjects.LEASES}"
_NO_RESPONDERS: Headers = {"Status": "503"}
_NOT_FOUND = {"code": 404, "err_code": 10059, "description": "not found"}
_NO_MESSAGE = {"code": 404, "err_code": 10037, "description": "no message found"}
_BATCH_INCOMPLETE = {"code": 400, "err_code": 10176, "description": "batch publish incomplete"}


class Server:
    """What all connections talk to."""

    def __init__(self, loop: SimLoop, faults: Faults, settings: CoreSettings, trace: Trace) -> None:
        self.loop = loop
        self.faults = faults
        self.trace = trace
        self.clients: list[SimClient] = []
        self.objects: dict[str, bytes] = {}
        self.streams: dict[str, Stream] = {}
        self.multi_last_limit = 1024
        """Messages that one direct get of many subjects gives at most."""
        self.on_refused: Callable[[Publish, Refused], None] = lambda _message, _refused: None
        self.on_sent: Callable[[str, bytes, Headers], None] = lambda _subject, _body, _headers: None
        self._subs: dict[str, list[SimSubscription]] = {}
        self._wild: list[tuple[list[str], SimSubscription]] = []
        self._listening: set[SimSubscription] = set()
        self._projector: Mapping[str, Any] = {}
        self.consumers = Consumers(self)
        for config in stream_table(settings):
            self._add_stream(config)
        for stream, consumer in consumer_table(settings):
            if consumer["ack_policy"] == "explicit":
                self.add_consumer(stream, consumer)
            else:
                self._projector = consumer

    def _add_stream(self, config: Mapping[str, Any]) -> Stream:
        stream = self.streams[config["name"]] = Stream(config, self.loop.time)

        def stored(message: StoredMessage) -> None:
            self._after(stream, message)

        stream.on_stored.append(stored)
        return stream

    def add_consumer(self, stream: str, config: Mapping[str, Any]) -> PullConsumer:
        """Create a durable, at the beginning of its stream."""
        return self.consumers.add(PullConsumer(config, self.streams[stream]))

    @property
    def runs(self) -> Stream:
        return self.streams[subjects.RUNS]

    # -- interest ------------------------------------------------------------------------------

    def subscribe(self, subscription: SimSubscription) -> None:
        subject = subscription.subject
        if subject.endswith(".*") and subject.startswith("_INBOX."):
            subject = subject[:-1]
        if "*" in subject or ">" in subject:
            self._wild.append((subject.split("."), subscription))
        else:
            self._subs.setdefault(subject, []).append(subscription)
        self._listening.add(subscription)

    def lose_interest(self, subscription: SimSubscription) -> None:
        """Send nothing more; what is under way is still handed over."""
        subject = subscription.subject
        if subject.endswith(".*") and subject.startswith("_INBOX."):
            subject = subject[:-1]
        known = self._subs.get(subject)
        if known is not None:
            if subscription in known:
                known.remove(subscription)
            if not known:
                del self._subs[subject]
        elif "*" in subject or ">" in subject:
            self._wild = [pair for pair in self._wild if pair[1] is not subscription]

    def unsubscribe(self, subscription: SimSubscription) -> None:
        self.lose_interest(subscription)
        self._listening.discard(subscription)

    def subscribed(self, subscription: SimSubscription) -> bool:
        return subscription in self._listening

    def interested(self, subject: str) -> bool:
        """Tell whether anybody listens to an inbox."""
        return any(sub.client.alive for sub in self._subs.get(subject, ()))

    def forget(self, client: SimClient) -> None:
        """Drop the interests of a connection that is closed."""
        for subscription in [sub for sub in self._listening if sub.client is client]:
            self.unsubscribe(subscription)
        if client in self.clients:
            self.clients.remove(client)

    def tell(
        self,
        subject: str,
        reply: str,
        body: bytes,
        headers: Headers | None,
        *,
        lost: str = "lost_answer",
        shown: str = "",
    ) -> bool:
        """Send a message to all who listen; tell whether anybody does.

        Args:
            subject: Where to.
            reply: Where an answer goes.
            body: The message.
            headers: Its headers.
            lost: What it is called if it gets lost.
            shown: The subject that the receiver sees, if another (a delivery from a stream).
        """
        found = self._subs.get(subject)
        if found is None and subject.startswith("_INBOX."):
            found = self._subs.get(subject[: subject.rindex(".") + 1])
        heard = False
        for subscription in tuple(found or ()):
            heard |= self._tell_one(
                subscription, subject, shown or subject, reply, body, headers, lost
            )
        if self._wild and subject[0] != "_":
            tokens = subject.split(".")
            for wanted, subscription in tuple(self._wild):
                if matches(tokens, wanted):
                    heard |= self._tell_one(
                        subscription, subject, subject, reply, body, headers, lost
                    )
        return heard

    def _tell_one(
        self,
        subscription: SimSubscription,
        lane: str,
        subject: str,
        reply: str,
        body: bytes,
        headers: Headers | None,
        lost: str,
    ) -> bool:
        client = subscription.client
        if not client.alive:
            return False
        if lost and self.faults.lost(lost):
            self.trace(lost, client.process.name, subject)
        else:
            client.arrive(subscription, lane, subject, reply, body, headers)
        return True

    # -- what comes in -------------------------------------------------------------------------

    def receive(
        self,
        client: SimClient,
        epoch: int,
        subject: str,
        reply: str,
        body: bytes,
        headers: Headers,
    ) -> None:
        """Take a message from a connection."""
        if epoch != client.epoch:
            return  # it went down with its connection
        if subject.startswith("$JS.ACK."):
            self.consumers.acknowledge(subject, body)
            return
        if subject.startswith("$JS.API."):
            self._api(client, subject[8:], reply, body)
            return
        stream = self._stream_of(subject)
        if stream is not None:
            message = Publish(subject, body, headers, client.process.name)
            self._publish(stream, message, reply)
        elif not self.tell(subject, reply, body, headers or None) and reply:
            self.tell(reply, "", b"", _NO_RESPONDERS)

    def _stream_of(self, subject: str) -> Stream | None:
        first, _, rest = subject.partition(".")
        if first == "$KV":
            return self.streams.get(f"KV_{rest.partition('.')[0]}")
        name = _STREAM_OF.get(first)
        return self.streams[name] if name is not None else None

    def _publish(self, stream: Stream, message: Publish, reply: str) -> None:
        if self.loop.now < stream.unavailable_until:
            if reply:
                self.tell(reply, "", b"", _NO_RESPONDERS)
            return
        batch = message.headers.get("Nats-Batch-Id")
        if batch is not None:
            self._batched(stream, batch, message, reply)
            return
        refused = stream.refusal(message)
        if refused is not None:
            self.on_refused(message, refused)
            self.trace("refused", message.sender, f"{message.subject} {refused.error['err_code']}")
            self._answer(reply, {"error": refused.error, "stream": stream.name, "seq": 0})
            return
        stored = stream.store(message)
        if reply:
            ack = b'{"stream":"%b", "seq":%d}' % (stream.name.encode(), stored.seq)
            self.tell(reply, "", ack, None, lost="lost_ack")

    def _batched(self, stream: Stream, batch: str, message: Publish, reply: str) -> None:
        number = int(message.headers.pop("Nats-Batch-Sequence"))
        commit = message.headers.pop("Nats-Batch-Commit", None)
        del message.headers["Nats-Batch-Id"]
        gathered = stream.batches.setdefault(batch, [])
        if number != len(gathered) + 1:
            del stream.batches[batch]
            if reply:
                self._answer(reply, {"error": _BATCH_INCOMPLETE})
            return
        gathered.append(message)
        if commit is None:
            return
        del stream.batches[batch]
        for index, member in enumerate(gathered):
            refused = stream.refusal(member, gathered[:index])
            if refused is not None:
                self.trace("refused", message.sender, f"batch of {len(gathered)}: {member.subject}")
                self._answer(reply, {"error": refused.error, "stream": stream.name, "seq": 0})
                return
        for member in gathered:
            stream.store(member)
        answer = {"stream": stream.name, "seq": stream.last_seq, "batch": batch}
        self.tell(reply, "", as_json(answer | {"count": len(gathered)}), None, lost="lost_ack")

    def _answer(self, reply: str, answer: dict[str, Any]) -> None:
        if reply:
            self.tell(reply, "", as_json(answer), None)

    # -- what follows from storing ---------------------------------------------------------------

    def _after(self, stream: Stream, message: StoredMessage) -> None:
        sender = message.sender
        if stream.name != _LEASES:
            self.trace("stored", sender, f"{message.seq} {message.subject}")
        self.consumers.feed(stream)
        if stream.config.get("republish"):
            headers = {**message.headers, "Nats-Sequence": str(message.seq)}
            self.tell(subjects.live(message.subject), "", message.body, headers)
        ttl = message.headers.get("Nats-TTL")
        if ttl is not None and stream.config.get("allow_msg_ttl"):
            seconds = _seconds(ttl)
            self.loop.call_in(self.loop.system, seconds, self._expire, stream, message)
        schedule = message.headers.get("Nats-Schedule")
        if schedule is not None and stream.config.get("allow_msg_schedules"):
            self._schedule(stream, message, schedule)

    def _expire(self, stream: Stream, message: StoredMessage) -> None:
        if stream.messages.get(message.seq) is not message:
            return
        stream.remove(message)
        marker = stream.config.get("subject_delete_marker_ttl")
        if marker and "Nats-Marker-Reason" not in message.headers:
            headers = {"Nats-Marker-Reason": "MaxAge", "Nats-TTL": f"{int(marker / 1e9)}s"}
            stream.store(Publish(message.subject, b"", headers))

    def _schedule(self, stream: Stream, message: StoredMessage, schedule: str) -> None:
        due_at = datetime.fromisoformat(schedule.removeprefix("@at "))
        delay = max(0.0, (due_at - EPOCH).total_seconds() - self.loop.now) + 0.001
        if self.faults.happens("timer_lost", 0.1):
            return
        if self.faults.happens("timer_late", 0.1):
            delay += self.faults.random.random() * 20
        if self.faults.happens("timer_twice", 0.1):
            later = delay + self.faults.random.random() * 5
            self.loop.call_in(self.loop.system, later, self._fire, stream, message)
        self.loop.call_in(self.loop.system, delay, self._fire, stream, message)

    def _fire(self, stream: Stream, message: StoredMessage) -> None:
        held = stream.by_subject.get(message.subject)
        if held is not None and held is not message:
            return  # set anew meanwhile
        stream.remove(message)
        target = message.headers["Nats-Schedule-Target"]
        self.trace("timer", "server", target)
        stream.store(Publish(target, message.body, {}))

    # -- API -------------------------------------------------------------------------------------

    def _api(self, client: SimClient, verb: str, reply: str, body: bytes) -> None:
        parts = verb.split(".")
        name = parts[3 if parts[:3] == ["CONSUMER", "MSG", "NEXT"] else 2]
        if parts[:3] == ["STREAM", "MSG", "GET"]:
            name = parts[3]
        stream = self.streams.get(name)
        if stream is None:
            self._answer(reply, {"error": _NOT_FOUND})
        elif self.loop.now < stream.unavailable_until and parts[1] != "INFO":
            self.tell(reply, "", b"", _NO_RESPONDERS)
        elif parts[0] == "DIRECT":
            self._direct(stream, ".".join(parts[3:]), reply, body)
        elif parts[0] == "STREAM":
            self._stream_api(stream, parts[1], reply, json.loads(body or b"{}"))
        elif parts[1] == "MSG":
            self.consumers.pull(client, parts[4], reply, json.loads(body))
        else:
            self._consumer_api(client, parts, stream, reply, json.loads(body or b"{}"))

    def _stream_api(self, stream: Stream, verb: str, reply: str, request: dict[str, Any]) -> None:
        if verb == "MSG":
            found = stream.by_subject.get(request["last_by_subj"])
            if found is None:
                self._answer(reply, {"error": _NO_MESSAGE})
                return
            message = {
                "subject": found.subject,
                "seq": found.seq,
                "data": base64.b64encode(found.body).decode(),
            }
            if found.headers:
                message["hdrs"] = base64.b64encode(header_block(found.headers)).decode()
            self._answer(reply, {"message": message})
        elif verb == "INFO":
            state: dict[str, Any] = {"last_seq": stream.last_seq}
            now = EPOCH + timedelta(seconds=self.loop.now)
            answer: dict[str, Any] = {
                "config": stream.config,
                "state": state,
                "ts": now.isoformat(),
            }
            wanted = request.get("subjects_filter")
            if wanted:
                found_subjects = sorted({m.subject: 1 for m in stream.select(wanted)})
                offset = int(request.get("offset", 0))
                page = found_subjects[offset : offset + self.multi_last_limit]
                state["subjects"] = dict.fromkeys(page, 1)
                answer |= {"total": len(found_subjects), "offset": offset}
            self._answer(reply, answer)
        else:
            stream.config = {**stream.config, **request}
            self._answer(reply, {"config": stream.config})

    def _consumer_api(
        self,
        client: SimClient,
        parts: list[str],
        stream: Stream,
        reply: str,
        request: dict[str, Any],
    ) -> None:
        verb, name = parts[1], parts[3]
        if verb == "CREATE":
            config = request["config"]
            if "deliver_subject" in config:
                push = PushConsumer(config, stream, client, client.epoch)
                pending = self.consumers.start_push(push)
                self._answer(reply, {"name": name, "num_pending": pending, "delivered": {}})
                return
            if name not in self.consumers.pulls and config["ack_policy"] == "explicit":
                self.add_consumer(stream.name, {**config, "durable_name": name})
                self.consumers.feed(stream)
            self._answer(reply, {"name": name, "config": config})
        elif verb == "INFO":
            consumer = self.consumers.pulls.get(name)
            if consumer is None and name != subjects.PROJECTOR:
                self._answer(reply, {"error": _NOT_FOUND})
            else:
                config = consumer.config if consumer is not None else self._projector
                # No archive: the projector has acknowledged nothing.
                floor = {"stream_seq": 0}
                self._answer(reply, {"name": name, "config": config, "ack_floor": floor})
        elif verb == "DELETE":
            self.consumers.delete(name)
            self._answer(reply, {"success": True})

    def _direct(self, stream: Stream, subject: str, reply: str, body: bytes) -> None:
        """Answer as a replica that may lag."""
        up_to = stream.last_seq
        if self.faults.happens("lagging_read", 0.3):
            behind = self.loop.now - self.faults.random.random() * 0.3
            while up_to > 0 and (
                up_to not in stream.messages or stream.messages[up_to].time > behind
            ):
                up_to -= 1
        if subject:
            found = stream.by_subject.get(subject)
            if found is None or found.seq > up_to:
                self.tell(reply, "", b"", {"Status": "404", "Description": "Message Not Found"})
            else:
                self.tell(reply, "", found.body, _direct_headers(stream, found))
            return
        request = json.loads(body)
        if "multi_last" in request:
            found_all = [
                m for want in request["multi_last"] for m in stream.select(want) if m.seq <= up_to
            ]
            if len(found_all) > self.multi_last_limit:
                self.tell(reply, "", b"", {"Status": "413", "Description": "Too Many Results"})
                return
            rest = 0
        else:
            first, batch = int(request["seq"]), int(request["batch"])
            found_all = [
                m for m in stream.select(request["next_by_subj"]) if first <= m.seq <= up_to
            ]
            rest = max(0, len(found_all) - batch)
            found_all = found_all[:batch]
        if not found_all:
            self.tell(reply, "", b"", {"Status": "404", "Description": "No Results"})
            return
        found_all.sort(key=lambda m: m.seq)
        # A connection loses the rest of an answer, never a part within it.
        lost = self.faults.lost("lost_answer")
        told = self.faults.random.randrange(len(found_all)) if lost else len(found_all)
        for message in found_all[:told]:
            self.tell(reply, "", message.body, _direct_headers(stream, message), lost="")
        if lost:
            return
        self.tell(
            reply,
            "",
            b"",
            {
                "Status": "204",
                "Description": "EOB",
                "Nats-Num-Pending": str(rest),
                "Nats-Last-Sequence": str(found_all[-1].seq),
                "Nats-UpTo-Sequence": str(up_to),
            },
        )

    # -- faults ----------------------------------------------------------------------------------

    def restart(self) -> None:
        """Lose connections and all that is in memory; a little of what consumers noted too."""
        self.trace("fault", "server", "restarts")
        for stream in self.streams.values():
            stream.batches.clear()
        for client in tuple(self.clients):
            client.disconnect(0.2 + self.faults.random.random() * 2)
        for name in tuple(self.consumers.pulls):
            if self.faults.random.random() < 0.5:
                self.consumers.forget(name)


def _direct_headers(stream: Stream, message: StoredMessage) -> Headers:
    return {
        **message.headers,
        "Nats-Stream": stream.name,
        "Nats-Subject": message.subject,
        "Nats-Sequence": str(message.seq),
    }


def _seconds(text: str) -> float:
    """Read the server's form of a duration, such as ``30s`` or ``1h``."""
    found = re.fullmatch(r"(\d+)([smh])", text)
    assert found is not None, f"not a duration: {text}"
    return float(found.group(1)) * {"s": 1, "m": 60, "h": 3600}[found.group(2)]
