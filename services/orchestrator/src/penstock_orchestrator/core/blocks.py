"""Nodes that contain blocks: branches, parallel blocks, maps, loops."""

from __future__ import annotations

from penstock.contracts.errors import ErrorDetail, ErrorInfo, RejectedError
from penstock.contracts.facts import NodeRecord
from penstock.contracts.json import Json, JsonObject
from penstock.contracts.plan import BranchNode, LoopNode, MapNode, Node, ParallelNode
from penstock.expressions.conditions import holds
from penstock_orchestrator.core.progress import (
    Instance,
    MapRun,
    Outcome,
    Scope,
    has_begun,
    instance_of,
)
from penstock_orchestrator.core.view import ExpressionScope
from penstock_orchestrator.core.walk import Walk


def branch(walk: Walk, instance: Instance[BranchNode]) -> Outcome | None:
    """Take the first case whose condition holds."""
    node_record = walk.view.node_record(instance.id)
    if node_record is None:
        scope = walk.scope(instance)
        for index, condition in enumerate(instance.node.conditions):
            if condition is None or holds(condition, scope):
                node_record = NodeRecord(
                    record_id=instance.id, kind="branch", status="open", choice=str(index)
                )
                walk.view.note(node_record)
                break
        else:
            return walk.done(instance, None)
    taken = walk.enter(instance.node.blocks[int(node_record.choice or 0)], instance.path)
    if taken.failed is not None:
        return walk.fail(instance, taken.failed)
    if taken.remaining:
        return None
    output = walk.view.block_output(taken.block, instance.path)
    return walk.done(instance, output, choice=node_record.choice)


def parallel(walk: Walk, instance: Instance[ParallelNode]) -> Outcome | None:
    """Run all blocks side by side, until enough of them have succeeded."""
    node, path = instance.node, instance.path
    if walk.view.node_record(instance.id) is None:
        most = walk.budget.limits.max_fan_out
        if most is not None and len(node.blocks) > most:
            return walk.fail(instance, _too_wide(node, len(node.blocks), most))
        walk.view.note(
            NodeRecord(
                record_id=instance.id,
                kind="parallel",
                status="open",
                count=len(node.blocks),
            )
        )
    scopes = [walk.enter(block, path) for block in node.blocks]
    failed = [scope for scope in scopes if scope.failed is not None]
    done = [scope for scope in scopes if scope.failed is None and not scope.remaining]
    wanted = node.wait if node.wait is not None else len(scopes)
    if node.wait is None and node.collect:
        if len(failed) + len(done) < len(scopes):
            return None
    elif len(done) < wanted:
        tolerated = len(scopes) - wanted if node.wait is not None else 0
        if len(failed) > tolerated or (failed and not node.collect and node.wait is None):
            return walk.fail(instance, failed[-1].failed or _lost(node))
        return None
    output: JsonObject = {}
    for scope in scopes:
        if scope in done or (scope in failed and node.collect):
            name = scope.block.name
            output[name] = walk.view.item_result(scope.block, path, collect=node.collect)
    if len(done) + len(failed) < len(scopes):
        walk.abandon(node.blocks, path)
    return walk.done(instance, output)


def map_(walk: Walk, instance: Instance[MapNode]) -> Outcome | None:
    """Run the body for every item, at most ``concurrency`` at a time."""
    node = instance.node
    items = walk.view.items(node, instance.path)
    run = walk.progress.maps[instance.id]
    if walk.view.node_record(instance.id) is None:
        most = min(node.max_items, walk.budget.limits.max_fan_out or node.max_items)
        if len(items) > most:
            return walk.fail(instance, _too_wide(node, len(items), most))
        walk.view.note(
            NodeRecord(record_id=instance.id, kind="map", status="open", count=len(items))
        )
    _count_items(run)
    if run.error is not None and not node.collect:
        return walk.fail(instance, run.error)
    if run.succeeded + run.failed == len(items):
        output: Json = [
            walk.view.item_result(node.body, (*instance.path, index), collect=node.collect)
            for index in range(len(items))
        ]
        return walk.done(instance, output, count=len(items))
    _begin_items(walk, instance, run)
    return None


def _count_items(run: MapRun) -> None:
    while run.finished:
        scope = run.finished.popleft()
        run.running -= 1
        if scope.failed is None:
            run.succeeded += 1
        else:
            run.failed += 1
            run.error = run.error or scope.failed


def _begin_items(walk: Walk, instance: Instance[MapNode], run: MapRun) -> None:
    node = instance.node
    most = node.concurrency or len(run.items)
    while run.begun < len(run.items) and run.running < most:
        if walk.full:
            # The next item begins when this decision is stored.
            walk.progress.enqueue(instance)
            return
        if walk.full_pools:
            walk.hold(instance)
            return
        inner = (*instance.path, run.begun)
        run.begun += 1
        run.running += 1
        first = [instance_of(each, inner) for each in node.body.nodes]
        if any(has_begun(each.node, each.id, walk.state) for each in first):
            walk.enter(node.body, inner)
        else:
            walk.enter_now(node.body, inner)


def loop(walk: Walk, instance: Instance[LoopNode]) -> Outcome | None:
    """Run the body repeatedly, as long as its conditions require."""
    node = instance.node
    node_record = walk.view.node_record(instance.id)
    begun = node_record.count or 0 if node_record is not None else 0
    if begun:
        scope = walk.enter(node.body, (*instance.path, begun - 1))
        if scope.failed is not None:
            return walk.fail(instance, scope.failed)
        if scope.remaining:
            return None
        if node.until is not None and _holds(walk, instance, node.until, begun - 1, scope):
            return _looped(walk, instance, begun)
    if node.while_ is not None and not _holds(walk, instance, node.while_, begun, None):
        return _looped(walk, instance, begun)
    if begun >= node.max_iterations:
        return _limit(walk, instance, begun)
    walk.view.note(NodeRecord(record_id=instance.id, kind="loop", status="open", count=begun + 1))
    walk.enter(node.body, (*instance.path, begun))
    return None


def _holds(
    walk: Walk, instance: Instance[LoopNode], condition: Json, iteration: int, after: Scope | None
) -> bool:
    """Check a loop's condition before an iteration, or after it."""
    body = instance.node.body
    last = iteration if after is not None else iteration - 1
    variables: ExpressionScope = {"iteration": iteration, "previous": None}
    if last >= 0:
        variables["previous"] = walk.view.block_output(body, (*instance.path, last))
    if after is not None:
        # The condition that ends the loop sees the nodes of the iteration.
        return holds(condition, walk.view.scope(body.nodes[-1].id, after.path, variables))
    return holds(condition, walk.scope(instance, variables))


def _looped(walk: Walk, instance: Instance[LoopNode], begun: int) -> Outcome:
    output = (
        walk.view.block_output(instance.node.body, (*instance.path, begun - 1)) if begun else None
    )
    return walk.done(instance, output, count=begun)


def _limit(walk: Walk, instance: Instance[LoopNode], begun: int) -> Outcome:
    node = instance.node
    if node.on_limit == "stop" or (node.while_ is None and node.until is None):
        return _looped(walk, instance, begun)
    message = f"step {node.id} was not done after {begun} iterations"
    return walk.fail(instance, ErrorInfo(code="loop_limit", message=message))


def _too_wide(node: Node, found: int, most: int) -> ErrorInfo:
    return RejectedError(
        "too_many_items",
        f"step {node.id} fans out to {found}; allowed are {most}",
        details=(ErrorDetail(path=node.id, message=f"got {found}", allowed=f"<= {most}"),),
    ).info()


def _lost(node: Node) -> ErrorInfo:
    return ErrorInfo(code="step_failed", message=f"too many blocks of step {node.id} failed")
