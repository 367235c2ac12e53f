"""``penstock dev`` and the processes of a local stack."""

from __future__ import annotations

import json
import os
import sys
from typing import Any, NoReturn

from penstock.cli.failure import MISUSED, CommandError
from penstock.stack import SERVICES, StackOptions, is_loopback
from penstock.target import Target


def run_stack(options: StackOptions) -> NoReturn:
    """Become the supervisor: this process keeps nothing of the command line's libraries.

    Raises:
        CommandError: The options cannot stand together.
    """
    if not options.auth and not is_loopback(options.host):
        raise CommandError(
            f"refusing to listen on {options.host} without authentication: add --auth",
            exit_code=MISUSED,
        )
    sys.stdout.flush()
    sys.stderr.flush()
    command = [sys.executable, "-m", "penstock.supervisor", json.dumps(options._asdict())]
    os.execv(sys.executable, command)  # noqa: S606 - our interpreter, our module


def list_processes(target: Target, *, as_json: bool) -> None:
    """Show what ``stack.json`` says.

    Raises:
        CommandError: No stack runs there.
    """
    from penstock.cli.display import console, print_json, table

    stack = _stack(target)
    if as_json:
        print_json(stack)
        return
    screen = console()
    screen.print(f"{stack['url']}   {stack['nats_url']}   {stack['data_dir']}")
    rows = [["supervisor", str(stack["supervisor_pid"]), "", ""]]
    rows += [
        [
            name,
            str(process["pid"]),
            str(process["restarts"]),
            f"http://127.0.0.1:{process['metrics_port']}/metrics"
            if "metrics_port" in process
            else f"{stack['monitor_url']}/varz",
        ]
        for name, process in stack["processes"].items()
    ]
    screen.print(table(("process", "pid", "restarts", "metrics"), rows))


def run_replica(target: Target, name: str) -> NoReturn:
    """Become one more process of a service, on the local stack's bus and data.

    Raises:
        CommandError: No stack runs there, or the service is unknown.
    """
    stack = _stack(target)
    service = next((found for found in SERVICES if found.name == name), None)
    if service is None:
        known = ", ".join(found.name for found in SERVICES)
        raise CommandError(f"no service {name}: there are {known}", exit_code=MISUSED)
    env = {
        # A replica takes a port of its own unless it is told one.
        "PENSTOCK_PORT": "0",
        **os.environ,
        **service.env,
        "PENSTOCK_NATS_URL": stack["nats_url"],
        "PENSTOCK_DATA_DIR": stack["data_dir"],
        "PENSTOCK_AUTH_REQUIRED": "true" if stack["auth"] else "false",
    }
    os.execve(sys.executable, [sys.executable, "-m", service.module], env)  # noqa: S606 - as above


def _stack(target: Target) -> dict[str, Any]:
    if target.stack is None:
        raise CommandError(f"no stack runs in {target.data_dir.absolute()}: see `penstock dev`")
    return target.stack
