"""Bundles: a run as one file, which says by itself whether it is whole.

Newline-delimited JSON: header, plan, one line for each fact, footer. Each line carries the SHA-256
over the hash before it and its own content, so that nothing can be changed, left out or reordered
unseen. Large bodies are written out; a bundle needs no object store.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Final, Literal

from pydantic import AwareDatetime, Field, TypeAdapter, ValidationError

from penstock.contracts.envelope import MAX_FACT_DEPTH, check_text
from penstock.contracts.errors import ErrorDetail, RejectedError
from penstock.contracts.facts import Record, RunEnded, RunInvoked
from penstock.contracts.messages import LogEntry
from penstock.contracts.plan import PLAN

FORMAT: Final = "penstock.bundle/1"
MEDIA_TYPE: Final = "application/x-ndjson"
_START: Final = ""


class BundleHeader(Record):
    """What the bundle is of."""

    type: Literal["header"] = "header"
    format: Literal["penstock.bundle/1"] = "penstock.bundle/1"
    run_id: str
    tenant: str
    created_at: AwareDatetime
    """When the bundle was made."""


class BundlePlan(Record):
    """The plan that the run executes."""

    type: Literal["plan"] = "plan"
    digest: str
    plan: str
    """Its canonical JSON, byte for byte: the digest is taken of it."""


class BundleEntry(Record):
    """One fact, with its place in the log that it comes from."""

    type: Literal["entry"] = "entry"
    entry: LogEntry


class BundleFooter(Record):
    """The end: a bundle without it is cut off."""

    type: Literal["footer"] = "footer"
    entries: int
    hash: str
    """The hash of the line before."""
    signature: str | None = None
    """HMAC-SHA256 over ``hash``, in hexadecimal, where the exporting installation has a key."""


BundleLine = BundleHeader | BundlePlan | BundleEntry | BundleFooter
_LINE: Final[TypeAdapter[BundleLine]] = TypeAdapter(
    Annotated[BundleLine, Field(discriminator="type")]
)


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle that was read and is whole."""

    header: BundleHeader
    plan: bytes | None
    """The plan's canonical bytes."""
    entries: tuple[LogEntry, ...]
    hash: str
    """The hash before the footer: it stands for all of the content."""
    signature: str | None = None

    def signed_by(self, key: bytes) -> bool:
        """Return whether the bundle has a signature by a key."""
        expected = _signature(key, self.hash)
        return self.signature is not None and hmac.compare_digest(
            expected.encode(), self.signature.encode("utf-8", "replace")
        )

    @property
    def invoked(self) -> RunInvoked:
        """The fact that asked for the run; ``read`` has found it."""
        return next(e.fact for e in self.entries if isinstance(e.fact, RunInvoked))

    @property
    def ended(self) -> RunEnded | None:
        """How the run ended, if it did."""
        return next((e.fact for e in self.entries if isinstance(e.fact, RunEnded)), None)


def write(
    header: BundleHeader,
    plan: bytes | None,
    entries: Iterable[LogEntry],
    key: bytes | None = None,
) -> Iterator[bytes]:
    """Yield the lines of a bundle, each with its line break.

    Args:
        header: What it is of.
        plan: The plan's canonical bytes; ``None`` where it is lost.
        entries: The facts in order.
        key: Signs the bundle.
    """
    chained, count = _START, 0
    for line in _lines(header, plan, entries):
        content = line.model_dump(mode="json")
        chained = _hash(chained, content)
        count += isinstance(line, BundleEntry)
        yield _dumped({"hash": chained, "line": content}) + b"\n"
    signature = None if key is None else _signature(key, chained)
    closing = BundleFooter(entries=count, hash=chained, signature=signature)
    footer = closing.model_dump(mode="json", exclude_none=True)
    yield _dumped({"hash": _hash(chained, footer), "line": footer}) + b"\n"


def _lines(
    header: BundleHeader, plan: bytes | None, entries: Iterable[LogEntry]
) -> Iterator[BundleLine]:
    yield header
    if plan is not None:
        yield BundlePlan(digest=hashlib.sha256(plan).hexdigest(), plan=plan.decode())
    for entry in entries:
        yield BundleEntry(entry=entry)


def read(lines: Iterable[bytes]) -> Bundle:
    """Read a bundle and check that it is whole.

    Raises:
        RejectedError: ``invalid_bundle``, with the line that is wrong.
    """
    reader = BundleReader()
    for line in lines:
        reader.add(line)
    return reader.finish()


class BundleReader:
    """Takes a bundle line by line."""

    def __init__(self) -> None:
        """Begin before the header."""
        self._number = 0
        self._hash = _START
        self._header: BundleHeader | None = None
        self._plan: bytes | None = None
        self._entries: list[LogEntry] = []
        self._ended = False
        self._signature: str | None = None
        self._signed_hash = _START

    def add(self, text: bytes) -> None:
        """Take the next line.

        Raises:
            RejectedError: ``invalid_bundle``.
        """
        if not text.strip():
            return
        self._number += 1
        line, chained = self._checked(text)
        if self._ended:
            raise self._wrong("something follows the footer", "nothing")
        if (self._header is None) != isinstance(line, BundleHeader):
            raise self._wrong("the header is not the first line", f"a header of {FORMAT}, once")
        if isinstance(line, BundleHeader):
            self._header = line
        elif isinstance(line, BundlePlan):
            self._plan = self._plan_of(line)
        elif isinstance(line, BundleEntry):
            self._add_entry(line.entry)
        else:
            if line.entries != len(self._entries) or line.hash != self._hash:
                raise self._wrong(
                    f"the footer counts {line.entries} facts", f"{len(self._entries)}, as read"
                )
            self._ended, self._signature = True, line.signature
            self._signed_hash = line.hash
        self._hash = chained

    def finish(self) -> Bundle:
        """Return the bundle.

        Raises:
            RejectedError: ``invalid_bundle``: it is cut off.
        """
        if self._header is None or not self._ended:
            raise self._wrong("the bundle is cut off", "a footer at the end")
        bundle = Bundle(
            self._header, self._plan, tuple(self._entries), self._signed_hash, self._signature
        )
        if not any(isinstance(entry.fact, RunInvoked) for entry in self._entries):
            raise self._wrong("nothing asks for the run", "a fact run.invoked")
        if self._plan is not None:
            digest = hashlib.sha256(self._plan).hexdigest()
            if digest != bundle.invoked.plan_digest:
                raise self._wrong("the plan is not the run's", bundle.invoked.plan_digest)
        return bundle

    def _checked(self, text: bytes) -> tuple[BundleLine, str]:
        try:
            # A fact stands three deep in its line.
            check_text(text, MAX_FACT_DEPTH + 3)
            found = json.loads(text)
        except ValueError as error:
            raise self._wrong(f"not JSON: {error}", "one JSON object on each line") from error
        if not isinstance(found, dict) or "hash" not in found or "line" not in found:
            raise self._wrong("not a line of a bundle", '{"hash": ..., "line": {...}}')
        chained = _hash(self._hash, found["line"])
        if found["hash"] != chained:
            raise self._wrong(
                "the hash does not fit: this line or the order of lines was changed", chained
            )
        try:
            return _LINE.validate_python(found["line"]), chained
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"]))
            allowed = "header, plan, entry or footer"
            raise self._wrong(f"{place}: {first['msg']}", allowed) from error

    def _plan_of(self, line: BundlePlan) -> bytes:
        plan = line.plan.encode()
        try:
            PLAN.validate_json(plan)
        except ValidationError as error:
            raise self._wrong("the plan cannot be read", "a plan of this version") from error
        if hashlib.sha256(plan).hexdigest() != line.digest:
            raise self._wrong("the plan's digest does not fit", "the plan as it was exported")
        return plan

    def _add_entry(self, entry: LogEntry) -> None:
        if self._header is not None and self._header.run_id not in entry.subject.split("."):
            raise self._wrong("a fact of another run", f"facts of {self._header.run_id}")
        if self._entries and entry.seq <= self._entries[-1].seq:
            raise self._wrong("facts are out of order", f"a sequence above {self._entries[-1].seq}")
        self._entries.append(entry)

    def _wrong(self, message: str, allowed: str) -> RejectedError:
        detail = ErrorDetail(path=f"line {self._number}", message=message, allowed=allowed)
        return RejectedError("invalid_bundle", f"line {self._number}: {message}", details=(detail,))


def moved(subject: str, prefix: str) -> str:
    """Return a fact's subject as it is in a run with another prefix."""
    return f"{prefix}.{subject.split('.', 4)[4]}"


def _signature(key: bytes, last: str) -> str:
    return hmac.new(key, f"{FORMAT}:{last}".encode(), hashlib.sha256).hexdigest()


def _hash(before: str, content: object) -> str:
    return hashlib.sha256(before.encode() + _dumped(content)).hexdigest()


def _dumped(content: object) -> bytes:
    """Return compact JSON in UTF-8; keys keep their order, because agents see them in it."""
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass")
