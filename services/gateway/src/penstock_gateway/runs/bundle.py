"""Bundles: a run with all its facts as one file, and a run imported from one."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Final

from fastapi import APIRouter, Path, Query, Request, Response
from msgspec import structs
from starlette.responses import StreamingResponse

from penstock import clock
from penstock.bus.claims import Claims
from penstock.bus.copies import FactCopy, put_back
from penstock.bus.kv import Bucket
from penstock.contracts import subjects
from penstock.contracts.errors import ConflictError, RejectedError, finding
from penstock.contracts.facts import (
    Decision,
    ForkedFrom,
    ImportedFrom,
    NodeRecord,
    RunFact,
    RunInvoked,
    SignalReceived,
    Trigger,
    fact_bytes,
    fact_type,
)
from penstock.contracts.ids import content_digest, is_run_id, run_id_from_key, shard_of
from penstock.contracts.messages import LogEntry
from penstock.contracts.plan import PLAN, Plan
from penstock.runs import bundles
from penstock.runs.bundles import MEDIA_TYPE, Bundle, BundleHeader, BundleReader
from penstock.runs.forks import seed_of
from penstock.runs.plan_checks import child_digests, plan_faults
from penstock.runs.replies import RunImported
from penstock.runs.state import Entry
from penstock_gateway.context import GatewayParts, IdempotencyKey, Operator, Viewer
from penstock_gateway.core.access import Caller
from penstock_gateway.gateway import Gateway
from penstock_gateway.openapi import DONE_BEFORE
from penstock_gateway.runs.read import NOT_FOUND
from penstock_gateway.runs.start import new_run_id

_PARTS: Final = 64 * 1024
_ANSWERS: Final = frozenset({"approval", "resolution"})


class Bundles:
    """Exports and imports runs of any tenant."""

    def __init__(self, gateway: Gateway) -> None:
        """Use the process's parts."""
        self._bus = gateway.bus
        self._reader = gateway.reader
        self._writer = gateway.writer
        self._runs = gateway.runs
        self._shards = gateway.settings.shards
        self._claims = Claims(gateway.bus, gateway.settings.claim_threshold_bytes)
        self._plans = Bucket(gateway.bus, subjects.PLANS)
        self._published = gateway.published.values
        secret = gateway.settings.bundle_key
        self._key = None if secret is None else secret.get_secret_value().encode()

    async def export(self, tenant: str, run_id: str) -> Iterator[bytes]:
        """Return a run as the lines of a bundle, several at a time.

        Raises:
            RejectedError: ``run_not_found``.
            TransientError: The log, or the archive, did not answer.
        """
        entries = await self._runs.entries(tenant, run_id)
        prefix = self._runs.prefix(tenant, run_id)
        invoked = next(entry.fact for entry in entries if isinstance(entry.fact, RunInvoked))
        plan = await self._plans.get(invoked.plan_digest)
        header = BundleHeader(run_id=run_id, tenant=tenant, created_at=clock.now())
        facts = (
            LogEntry(seq=entry.seq, subject=_subject(prefix, entry), fact=entry.fact)
            for entry in entries
        )
        whole = plan is not None and content_digest(plan.value) == invoked.plan_digest
        canonical = plan.value if plan is not None and whole else None
        return _gathered(bundles.write(header, canonical, facts, self._key))

    async def load(
        self, caller: Caller, bundle: Bundle, *, as_new: bool, run_id: str | None = None
    ) -> RunImported:
        """Put a bundle's run into the log; may be repeated.

        An ended run is stored with equal facts. A run that is still open elsewhere can only
        continue as a new run, which takes over its recorded outcomes.

        Args:
            caller: Imports the run, into its tenant.
            bundle: The bundle.
            as_new: Store it under a new id.
            run_id: The new id, where the caller has one.

        Raises:
            RejectedError: ``invalid_bundle``, ``plan_missing``, ``outcome_unknown``;
                ``bundle_unsigned``, ``plan_not_published`` or ``invalid_plan``.
            ConflictError: ``run_exists``: its id stands for other facts. ``run_not_ended``.
            TransientError: The log did not take all; ask again.
        """
        source = bundle.header
        if not is_run_id(source.run_id):
            raise _invalid(f"{source.run_id[:64]} is not the id of a run")
        if bundle.ended is None and not as_new:
            raise ConflictError(
                "run_not_ended",
                f"run {source.run_id} had not ended when it was exported: "
                "import it as a new run, which continues from there",
            )
        target = (run_id or new_run_id()) if as_new else source.run_id
        tenant = caller.tenant
        signed = self._key is not None and bundle.signed_by(self._key)
        await self._require_permitted(caller, bundle, signed=signed)
        bundle = _marked(bundle, caller, signed=signed)
        if bundle.plan is not None:
            await self._plans.put(bundle.invoked.plan_digest, bundle.plan)
        if bundle.ended is None:
            return await self._go_on(tenant, bundle, target)
        copies = self._copies(tenant, bundle, target, as_new=as_new)
        there = await self._compared(tenant, target, copies)
        stored = await put_back(
            self._bus,
            self._claims,
            [
                FactCopy(seq, subject, fact_type(fact), fact_bytes(fact))
                for subject, (seq, fact) in copies.items()
            ],
            there=there,
        )
        return _imported(target, bundle, stored)

    async def _require_permitted(self, caller: Caller, bundle: Bundle, *, signed: bool) -> None:
        """Refuse what the caller may not run: an import can be forked, so it is a start.

        Plans that the registry published for the tenant are permitted, and those of the tenant's
        own bundles that this installation has signed. Admins may import others, which are checked
        as the registry checks documents.

        Raises:
            RejectedError: ``bundle_unsigned``, ``plan_not_published`` or ``invalid_plan``.
        """
        admin = "admin" in caller.may
        if not signed and not admin and (self._key is not None or _has_answers(bundle)):
            raise RejectedError(
                "bundle_unsigned",
                "this installation has not signed the bundle; only an admin may import it",
                details=(finding("footer.signature", "missing or invalid", "role admin"),),
            )
        if signed and bundle.header.tenant == caller.tenant:
            return
        prefix = f"{caller.tenant}."
        published = {
            version.plan_digest
            for key, version in self._published.items()
            if key.startswith(prefix)
        }
        plan = None if bundle.plan is None else PLAN.validate_json(bundle.plan)
        executed = {bundle.invoked.plan_digest}
        if plan is not None:
            executed |= await asyncio.to_thread(child_digests, plan)
        if executed <= published:
            return
        if not admin:
            raise RejectedError(
                "plan_not_published",
                "the run's plan is not published for this tenant; only an admin may import it",
                details=(finding("plan", "not published", "role admin"),),
            )
        faults = () if plan is None else tuple(await asyncio.to_thread(list, plan_faults(plan)))
        if faults:
            raise RejectedError(
                "invalid_plan",
                f"the bundle's plan could not be published: {faults[0].path}: {faults[0].message}",
                details=faults,
            )

    def _copies(
        self, tenant: str, bundle: Bundle, target: str, *, as_new: bool
    ) -> dict[str, tuple[int, RunFact]]:
        prefix = self._runs.prefix(tenant, target)
        copies: dict[str, tuple[int, RunFact]] = {}
        for entry in bundle.entries:
            try:
                subjects.parse_fact(entry.subject)
            except ValueError as error:
                raise _invalid(str(error)) from error
            fact: RunFact = entry.fact
            if isinstance(fact, RunInvoked) and (as_new or tenant != bundle.header.tenant):
                # Its parent in the other installation does not wait for the imported run.
                fact = structs.replace(fact, parent=None)
            copies[bundles.moved(entry.subject, prefix)] = (entry.seq, fact)
        return copies

    async def _compared(
        self, tenant: str, target: str, copies: dict[str, tuple[int, RunFact]]
    ) -> set[str]:
        """Return the stored facts of a run; refuse if one of them differs."""
        prefix = self._runs.prefix(tenant, target)
        shard = shard_of(target, self._shards)
        known: Sequence[Entry] = await self._reader.read_run(tenant, shard, target)
        there = {_subject(prefix, entry) for entry in known}
        if not known:
            try:
                known = await self._runs.entries(tenant, target)
            except RejectedError as error:
                if error.code != NOT_FOUND:
                    raise
        for entry in known:
            subject = _subject(prefix, entry)
            if subject not in copies or _unmarked(copies[subject][1]) != _unmarked(entry.fact):
                raise ConflictError(
                    "run_exists",
                    f"run {target} is there with other facts: import it as a new one",
                    details=(
                        finding(
                            subject.removeprefix(prefix + "."), "not what the bundle says", "as_new"
                        ),
                    ),
                )
        return there

    async def _go_on(self, tenant: str, bundle: Bundle, target: str) -> RunImported:
        """Start a run that takes over what an open one had recorded."""
        source = bundle.invoked
        prefix = self._runs.prefix(tenant, target)
        subject = subjects.invoke(prefix)
        if await self._reader.read_fact(subject) is not None:
            return _imported(target, bundle, 0)
        if bundle.plan is None:
            raise RejectedError("plan_missing", f"no plan has the digest {source.plan_digest}")
        plan: Plan = PLAN.validate_json(bundle.plan)
        entries = [
            Entry(entry.seq, subjects.parse_fact(entry.subject), entry.fact)
            for entry in bundle.entries
        ]
        seed = await asyncio.to_thread(seed_of, plan, entries)
        changes = {
            "occurred_at": clock.now(),
            "parent": None,
            "seed": seed,
            "trigger": Trigger.FORK,
            "request_digest": None,
            "forked_from": ForkedFrom(run_id=bundle.header.run_id, at_seq=bundle.entries[-1].seq),
        }
        try:
            await self._writer.append(subject, fact_bytes(structs.replace(source, **changes)))
        except ConflictError:
            return _imported(target, bundle, 0)
        return _imported(target, bundle, 1)


def _marked(bundle: Bundle, caller: Caller, *, signed: bool) -> Bundle:
    """Return a bundle whose run says that it was imported, and from where."""
    mark = ImportedFrom(
        run_id=bundle.header.run_id,
        tenant=bundle.header.tenant,
        hash=bundle.hash,
        signed=signed,
        imported_by=caller.key_id,
    )
    entries = tuple(
        structs.replace(entry, fact=structs.replace(entry.fact, imported=mark))
        if isinstance(entry.fact, RunInvoked)
        else entry
        for entry in bundle.entries
    )
    return dataclasses.replace(bundle, entries=entries)


def _has_answers(bundle: Bundle) -> bool:
    """Return whether a bundle contains approvals or resolutions.

    A run that continues it takes them over, and whoever writes a bundle can write those too.
    """
    facts = [entry.fact for entry in bundle.entries]
    records = [record for fact in facts for record in _node_records(fact)]
    return any(isinstance(fact, SignalReceived) and fact.kind in _ANSWERS for fact in facts) or any(
        record.kind in _ANSWERS and record.status != "open" for record in records
    )


def _node_records(fact: RunFact) -> Iterable[NodeRecord]:
    if isinstance(fact, RunInvoked):
        return () if fact.seed is None else fact.seed.node_records
    decision: Decision | None = getattr(fact, "decision", None)
    return () if decision is None else decision.node_records


def _unmarked(fact: RunFact) -> RunFact:
    """Return a fact without the mark of its import, which differs for each bundle of a run."""
    return structs.replace(fact, imported=None) if isinstance(fact, RunInvoked) else fact


def _imported(run_id: str, bundle: Bundle, stored: int) -> RunImported:
    facts = len(bundle.entries)
    return RunImported(run_id=run_id, facts=facts, stored=stored, hash=bundle.hash)


def _subject(prefix: str, entry: Entry) -> str:
    """Return the subject of a fact that was read."""
    at = entry.subject
    match at.event:
        case "invoke":
            return subjects.invoke(prefix)
        case "result":
            return subjects.result(prefix, at.step_id, at.attempt)
        case "signal":
            return subjects.signal(prefix, at.step_id)
        case "cancel":
            return subjects.cancel(prefix)
        case "step":
            suffix = subjects.step_suffix(at.kind, at.queue, at.step_id, at.attempt)
            return subjects.out(prefix, at.decision, suffix)
        case "state":
            return subjects.out(prefix, at.decision, subjects.STATE_SUFFIX)
        case "end":
            return subjects.out(prefix, at.decision, subjects.END_SUFFIX)


def _gathered(lines: Iterator[bytes]) -> Iterator[bytes]:
    parts: list[bytes] = []
    size = 0
    for line in lines:
        parts.append(line)
        size += len(line)
        if size >= _PARTS:
            yield b"".join(parts)
            parts, size = [], 0
    yield b"".join(parts)


def _invalid(message: str) -> RejectedError:
    detail = finding("header", message, "as it was exported")
    return RejectedError("invalid_bundle", message, details=(detail,))


RunId = Annotated[str, Path(description="The run")]

bundle_routes: Final = APIRouter(tags=["runs"])


@bundle_routes.get(
    "/v1/runs/{run_id}/export",
    response_class=Response,
    responses={
        200: {"description": "The bundle", "content": {MEDIA_TYPE: {"schema": {"type": "string"}}}}
    },
)
async def export_run(gateway: GatewayParts, caller: Viewer, run_id: RunId) -> StreamingResponse:
    """Stream a run as a bundle: its plan and all its facts, chained by hashes."""
    lines = await Bundles(gateway).export(caller.tenant, run_id)
    return StreamingResponse(
        lines,
        media_type=MEDIA_TYPE,
        headers={"content-disposition": f'attachment; filename="{run_id}.ndjson"'},
    )


@bundle_routes.post(
    "/v1/runs/import",
    status_code=201,
    responses=DONE_BEFORE,
    openapi_extra={
        "requestBody": {"required": True, "content": {MEDIA_TYPE: {"schema": {"type": "string"}}}}
    },
)
async def import_run(
    request: Request,
    gateway: GatewayParts,
    caller: Operator,
    response: Response,
    key: IdempotencyKey,
    as_new: Annotated[bool, Query(description="Store the run under a new id")] = False,
) -> RunImported:
    """Put the run of a bundle into the log. 201, or 200 if all of it was there.

    Every hash is checked first. The run's plan must be published for the tenant; others need the
    role admin, and are checked like documents. The run is marked as imported. An ended run stays
    as it was and nothing of it is done again; a run that had not ended needs `as_new` and
    continues from its recorded facts.
    """
    bundle = await _read(request)
    run_id = None if key is None else run_id_from_key(caller.tenant, key)
    done = await Bundles(gateway).load(caller, bundle, as_new=as_new, run_id=run_id)
    response.headers["location"] = f"/v1/runs/{done.run_id}"
    if not done.stored:
        response.status_code = 200
    return done


async def _read(request: Request) -> Bundle:
    """Read a bundle as it comes in, so that a wrong line ends it."""
    reader, rest = BundleReader(), b""
    async for part in request.stream():
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            reader.add(line)
    reader.add(rest)
    return reader.finish()
