"""The registry's verbs: the request model and the handler of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from penstock.contracts import rpc
from penstock.endpoint import Verb
from penstock_registry.agents import HttpAgents
from penstock_registry.aliases import VersionAliases
from penstock_registry.definitions import Definitions
from penstock_registry.keys import ApiKeys
from penstock_registry.runner_registry import RunnerRegistry


class Parts(NamedTuple):
    """The handlers' owners."""

    definitions: Definitions
    aliases: VersionAliases
    agents: HttpAgents
    keys: ApiKeys
    runner_registry: RunnerRegistry


def verbs(parts: Parts) -> Mapping[str, Verb]:
    """Return all verbs by name."""
    definitions, aliases, agents, keys, runner_registry = parts

    async def list_runners(request: rpc.ListRunners) -> rpc.Runners:
        return await agents.runners(request, runner_registry)

    return {
        "apply": Verb(rpc.ApplyDocuments, definitions.apply),
        "get_definition": Verb(rpc.GetDefinition, definitions.get, reads=True),
        "list_definitions": Verb(rpc.ListDefinitions, definitions.page, reads=True),
        "put_definition": Verb(rpc.PutDefinition, definitions.put),
        "patch_definition": Verb(rpc.PatchDefinition, definitions.patch),
        "delete_definition": Verb(rpc.DeleteDefinition, definitions.delete),
        "publish_definition": Verb(rpc.PublishDefinition, definitions.publish),
        "archive_definition": Verb(rpc.ArchiveDefinition, definitions.archive),
        "set_alias": Verb(rpc.SetAlias, aliases.set),
        "delete_alias": Verb(rpc.DeleteAlias, aliases.delete),
        "list_aliases": Verb(rpc.ListAliases, aliases.all, reads=True),
        "list_versions": Verb(rpc.ListVersions, definitions.versions, reads=True),
        "list_runners": Verb(rpc.ListRunners, list_runners, reads=True),
        "register_agent": Verb(rpc.RegisterAgent, agents.register),
        "beat_agent": Verb(rpc.BeatAgent, agents.beat, reads=True),
        "deregister_agent": Verb(rpc.DeregisterAgent, agents.deregister),
        "create_key": Verb(rpc.CreateKey, keys.create),
        "list_keys": Verb(rpc.ListKeys, keys.list, reads=True),
        "revoke_key": Verb(rpc.RevokeKey, keys.revoke),
    }
