"""``penstock versions``, ``publish``, ``archive`` and ``alias``: what a name stands for."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import quote

from penstock.cli.api import Api
from penstock.cli.display import console, moment, print_json, table
from penstock.cli.failure import MISUSED, CommandError
from penstock.target import Target

KINDS: Final = ("workflow", "network", "agent", "tool", "webhook", "schedule")
"""In the order in which a name is looked up."""


def list_versions(target: Target, name: str, *, kind: str | None, as_json: bool) -> None:
    """Show the versions of a definition, newest first.

    Raises:
        CommandError: There is no such definition, or the gateway cannot be reached.
    """
    with Api(target) as api:
        found = api.call("GET", f"{_path(api, name, kind)}/versions")["items"]
    if as_json:
        print_json(found)
        return
    rows = [
        [
            f"v{one['version']}",
            "in force" if one["in_force"] else "",
            moment(one["published_at"]),
            one["plan_digest"][:12],
        ]
        for one in found
    ]
    console().print(table(("version", "", "published", "plan"), rows))


def publish_version(target: Target, name: str, *, kind: str | None, version: int | None) -> None:
    """Bring a definition into force, as it is stored or an older version again.

    Raises:
        CommandError: There is no such definition or version, or it has faults.
    """
    with Api(target) as api:
        body = {"version": version} if version is not None else {}
        done = api.call("POST", f"{_path(api, name, kind)}/publish", body=body)
    console().print(f"{name}: v{done['version']} is in force", markup=False)


def archive_definition(target: Target, name: str, *, kind: str | None) -> None:
    """Take a definition out of force.

    Raises:
        CommandError: There is no such definition, or others use it.
    """
    with Api(target) as api:
        api.call("POST", f"{_path(api, name, kind)}/archive")
    console().print(f"{name} is archived", markup=False)


def put_alias(
    target: Target,
    name: str,
    alias: str,
    version: int,
    *,
    kind: str | None,
    canary: int | None,
    weight: int | None,
) -> None:
    """Let an alias stand for a version.

    Raises:
        CommandError: There is no such definition or version.
    """
    body: dict[str, Any] = {"version": version}
    if canary is not None:
        body["canary"] = {"version": canary, "weight": weight}
    with Api(target) as api:
        made = api.call("PUT", f"{_path(api, name, kind)}/aliases/{quote(alias)}", body=body)
    console().print(f"{name}@{alias} is {_aim(made)}", markup=False)


def show_aliases(target: Target, name: str, *, kind: str | None, as_json: bool) -> None:
    """Show the aliases of a definition.

    Raises:
        CommandError: There is no such definition.
    """
    with Api(target) as api:
        found = api.call("GET", f"{_path(api, name, kind)}/aliases")["items"]
    if as_json:
        print_json(found)
        return
    rows = [[f"{name}@{one['alias']}", _aim(one), moment(one["updated_at"])] for one in found]
    console().print(table(("alias", "stands for", "since"), rows))


def remove_alias(target: Target, name: str, alias: str, *, kind: str | None) -> None:
    """Remove an alias.

    Raises:
        CommandError: There is no such definition or alias.
    """
    with Api(target) as api:
        api.call("DELETE", f"{_path(api, name, kind)}/aliases/{quote(alias)}")
    console().print(f"{name}@{alias} is gone", markup=False)


def _aim(alias: dict[str, Any]) -> str:
    text = f"v{alias['version']}"
    canary = alias.get("canary")
    return f"{text}, {canary['weight']}% v{canary['version']}" if canary else text


def _path(api: Api, name: str, kind: str | None) -> str:
    """Return the path of a definition; without its kind the first that has the name."""
    if kind is not None and kind not in KINDS:
        raise CommandError(f"{kind!r} is no kind: {', '.join(KINDS)}", exit_code=MISUSED)
    candidates = [f"/v1/{one}s/{quote(name)}" for one in ((kind,) if kind else KINDS)]
    for path in candidates[:-1]:
        try:
            api.call("GET", path)
        except CommandError as error:
            if error.code != "unknown_definition":
                raise
        else:
            return path
    return candidates[-1]
