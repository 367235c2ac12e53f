"""``penstock runs export``, ``import`` and ``verify``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from penstock.cli.api import Api
from penstock.cli.display import console, print_json, status_text
from penstock.cli.failure import MISUSED, CommandError
from penstock.cli.wire import command_error
from penstock.contracts.errors import RejectedError
from penstock.runs.bundles import MEDIA_TYPE, Bundle, read
from penstock.target import Target

_SECONDS: Final = 300.0


def export_run(target: Target, run_id: str, output: str) -> None:
    """Write a run's bundle to a file, or to standard output as it comes.

    Raises:
        CommandError: The run is unknown, or the file cannot be written.
    """
    with Api(target) as api:
        parts = api.download(f"/v1/runs/{run_id}/export", timeout_seconds=_SECONDS)
        if output == "-":
            for part in parts:
                sys.stdout.buffer.write(part)
            sys.stdout.flush()
            return
        # Beside it first: a connection that breaks leaves no half of a bundle behind.
        file = Path(output)
        partial = file.with_name(f".{file.name}.partial")
        try:
            with partial.open("wb") as opened:
                for part in parts:
                    opened.write(part)
            bundle = _read(str(partial))
            partial.replace(file)
        except OSError as error:
            raise CommandError(f"{output}: {error.strerror}", exit_code=MISUSED) from error
        finally:
            partial.unlink(missing_ok=True)
    console().print(f"{output}: {len(bundle.entries)} facts, {bundle.hash}")


def verify_file(name: str, *, as_json: bool) -> None:
    """Check a bundle and say what it holds.

    Raises:
        CommandError: It is not whole; the line that is wrong is named.
    """
    bundle = _read(name)
    ended = bundle.ended
    told = {
        "run_id": bundle.header.run_id,
        "tenant": bundle.header.tenant,
        "name": bundle.invoked.name,
        "version": bundle.invoked.version,
        "status": ended.status.value if ended is not None else "running",
        "facts": len(bundle.entries),
        "plan": bundle.plan is not None,
        "hash": bundle.hash,
    }
    if as_json:
        print_json(told)
        return
    screen = console()
    screen.print(
        told["run_id"], status_text(str(told["status"])), f"{told['name']} v{told['version']}"
    )
    plan = "with its plan" if bundle.plan is not None else "without its plan"
    screen.print(f"{told['facts']} facts, {plan}, {bundle.hash}")


def import_file(target: Target, name: str, *, as_new: bool, key: str | None, as_json: bool) -> None:
    """Send a bundle to the gateway; checked here first, so that a broken one costs nothing.

    Raises:
        CommandError: It is not whole, or the gateway refused it.
    """
    _read(name)
    headers = {"Content-Type": MEDIA_TYPE}
    if key is not None:
        headers["Idempotency-Key"] = key
    path = "/v1/runs/import" + ("?as_new=true" if as_new else "")
    with Api(target) as api, Path(name).open("rb") as opened:
        done = api.upload(path, opened, headers=headers, timeout_seconds=_SECONDS)
    if as_json:
        print_json(done)
    else:
        console().print(f"{done['run_id']}: {done['stored']} of {done['facts']} facts were new")


def _read(name: str) -> Bundle:
    try:
        return read(_lines(name))
    except OSError as error:
        raise CommandError(f"{name}: {error.strerror}", exit_code=MISUSED) from error
    except RejectedError as error:
        raise command_error(error) from error


def _lines(name: str) -> Iterator[bytes]:
    with Path(name).open("rb") as opened:
        yield from opened
