"""``penstock runs export``, ``verify`` and ``import``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.cli.display import console, print_done, print_json, status_text
from penstock.cli.failure import MISUSED, CommandError
from penstock.cli.gateway import LONG_SECONDS, gateway
from penstock.cli.lazy import group
from penstock.cli.options import AsJson, RunId, StartKey

if TYPE_CHECKING:
    from penstock.runs.bundles import Bundle

File = Annotated[str, typer.Argument(metavar="FILE", help="File of the bundle.")]

app = group()


@app.command()
def export(
    context: typer.Context,
    run_id: RunId,
    output: Annotated[
        str, typer.Option("--output", "-o", help="Output file; - for standard output.")
    ] = "-",
    as_json: AsJson = False,
) -> None:
    """Write a run as a bundle. It holds the plan and all facts, chained by hashes."""
    from penstock.client import path_of

    with gateway(context) as client:
        path = path_of("/v1/runs/{}/export", run_id)
        parts = client.download(path, timeout_seconds=LONG_SECONDS)
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
    facts = len(bundle.entries)
    done = {"file": output, "facts": facts, "hash": bundle.hash}
    print_done(done, f"{output}: {facts} facts, {bundle.hash}", as_json=as_json)


@app.command()
def verify(file: File, as_json: AsJson = False) -> None:
    """Check every hash of a bundle, and its signature by PENSTOCK_BUNDLE_KEY; needs no server."""
    bundle = _read(file)
    signature = _signature(bundle, os.environ.get("PENSTOCK_BUNDLE_KEY"))
    status = bundle.ended.status.value if bundle.ended is not None else "running"
    name, version = bundle.invoked.name, bundle.invoked.version
    if as_json:
        shown = {
            "run_id": bundle.header.run_id,
            "tenant": bundle.header.tenant,
            "name": name,
            "version": version,
            "status": status,
            "facts": len(bundle.entries),
            "plan": bundle.plan is not None,
            "hash": bundle.hash,
            "signature": signature,
        }
        print_json(shown)
        return
    screen = console()
    screen.print(bundle.header.run_id, status_text(status), f"{name} v{version}")
    plan = "with its plan" if bundle.plan is not None else "without its plan"
    screen.print(f"{len(bundle.entries)} facts, {plan}, {bundle.hash}")
    screen.print(f"signature: {signature}")


def _signature(bundle: Bundle, key: str | None) -> str:
    """Return the state of a bundle's signature: none, not checked or valid.

    Raises:
        CommandError: There is a key, and the bundle has no signature by it.
    """
    if key is None:
        return "none" if bundle.signature is None else "not checked"
    if not bundle.signed_by(key.encode()):
        raise CommandError("the bundle has no signature by PENSTOCK_BUNDLE_KEY")
    return "valid"


@app.command("import")
def import_run(
    context: typer.Context,
    file: File,
    as_new: Annotated[bool, typer.Option("--as-new", help="Give the run a new id.")] = False,
    idempotency_key: StartKey = None,
    as_json: AsJson = False,
) -> None:
    """Put the run of a bundle into the log. Checks every hash first."""
    from penstock.client import Call
    from penstock.runs.bundles import MEDIA_TYPE
    from penstock.runs.replies import RunImported

    _read(file)  # a broken one costs the gateway nothing
    with gateway(context) as client, Path(file).open("rb") as opened:
        call = Call(
            RunImported,
            "POST",
            "/v1/runs/import",
            params={"as_new": "true" if as_new else None},
            headers={"Content-Type": MEDIA_TYPE, "Idempotency-Key": idempotency_key},
            timeout_seconds=LONG_SECONDS,
            content=opened,
        )
        done = client.send(call)
    text = f"{done.run_id}: {done.stored} of {done.facts} facts were new"
    print_done(done, text, as_json=as_json)


def _read(name: str) -> Bundle:
    """Return a bundle.

    Raises:
        CommandError: The file cannot be read, or its first wrong line is named.
    """
    from penstock.cli.wire import command_error
    from penstock.contracts.errors import RejectedError
    from penstock.runs.bundles import read

    try:
        with Path(name).open("rb") as opened:
            return read(opened)
    except OSError as error:
        raise CommandError(f"{name}: {error.strerror}", exit_code=MISUSED) from error
    except RejectedError as error:
        raise command_error(error) from error
