"""``penstock dev`` and ``penstock services``: the local stack and its processes."""

from __future__ import annotations

import json
import os
import sys
from typing import Annotated, NoReturn

import typer

from penstock.cli.display import console, print_json, table
from penstock.cli.failure import MISUSED, CommandError
from penstock.cli.lazy import group
from penstock.cli.options import AsJson
from penstock.stack import SERVICES, StackOptions, StackState, is_loopback
from penstock.target import Target

services = group()


def dev(
    context: typer.Context,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of the gateway; 0: any free port.")
    ] = 8080,
    nats_port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of the bus; 0: any free port.")
    ] = 4222,
    data_dir: Annotated[str | None, typer.Option(help="Data folder.")] = None,
    durable: Annotated[
        bool, typer.Option("--durable", help="Flush each message to disk before its ack.")
    ] = False,
    host: Annotated[str, typer.Option(help="Address of the gateway.")] = "127.0.0.1",
    auth: Annotated[
        bool, typer.Option("--auth", help="Require API keys (see `penstock keys create`).")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show the services' logs here.")
    ] = False,
) -> NoReturn:
    """Become the supervisor: this process keeps nothing of the command line's libraries.

    Raises:
        CommandError: The options contradict each other.
    """
    if not auth and not is_loopback(host):
        raise CommandError(
            f"refusing to listen on {host} without authentication: add --auth", exit_code=MISUSED
        )
    options = StackOptions(
        data_dir=data_dir or str(context.obj.data_dir),
        host=host,
        port=port,
        nats_port=nats_port,
        durable=durable,
        auth=auth,
        verbose=verbose,
    )
    sys.stdout.flush()
    sys.stderr.flush()
    command = [sys.executable, "-m", "penstock.supervisor", json.dumps(options._asdict())]
    os.execv(sys.executable, command)  # noqa: S606 - our interpreter, our module


@services.command("list")
def list_services(context: typer.Context, as_json: AsJson = False) -> None:
    """List the processes of the local stack."""
    stack = _stack(context.obj)
    if as_json:
        print_json(stack.to_json())
        return
    screen = console()
    screen.print(f"{stack.url}   {stack.nats_url}   {stack.data_dir}")
    rows = [["supervisor", str(stack.supervisor_pid), "", ""]]
    rows += [
        [
            name,
            str(process.pid),
            str(process.restarts),
            f"{stack.monitor_url}/varz"
            if process.ready is None
            else f"http://127.0.0.1:{process.metrics_port}/metrics",
        ]
        for name, process in stack.processes.items()
    ]
    screen.print(table(("process", "pid", "restarts", "metrics"), rows))


@services.command("run")
def run_service(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Such as gateway, registry, engine.")],
) -> NoReturn:
    """Run one more replica of a service. It runs in the foreground, beside the local stack."""
    stack = _stack(context.obj)
    service = next((found for found in SERVICES if found.name == name), None)
    if service is None:
        known = ", ".join(found.name for found in SERVICES)
        raise CommandError(f"no service {name}: there are {known}", exit_code=MISUSED)
    env = {
        # A replica takes any free port unless one is given.
        "PENSTOCK_PORT": "0",
        **os.environ,
        **service.env,
        "PENSTOCK_NATS_URL": stack.nats_url,
        "PENSTOCK_DATA_DIR": stack.data_dir,
        "PENSTOCK_AUTH_REQUIRED": "true" if stack.auth else "false",
    }
    os.execve(sys.executable, [sys.executable, "-m", service.module], env)  # noqa: S606 - as above


def _stack(target: Target) -> StackState:
    if target.stack is None:
        raise CommandError(f"no stack runs in {target.data_dir.absolute()}: see `penstock dev`")
    return target.stack
