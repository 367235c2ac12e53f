"""``penstock sink``: processes that export ended runs to other systems."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from penstock.cli.lazy import group

app = group()


@app.command()
def mlflow(
    context: typer.Context,
    url: Annotated[
        str, typer.Option(envvar="MLFLOW_TRACKING_URI", help="URL of the tracking server.")
    ] = "http://127.0.0.1:5000",
    experiment: Annotated[
        str, typer.Option(envvar="MLFLOW_EXPERIMENT_NAME", help="Name of the experiment.")
    ] = "penstock",
    name: Annotated[str, typer.Option(help="Sinks with the same name share the runs.")] = "mlflow",
    only_tenant: Annotated[
        str | None, typer.Option(help="Only runs of this tenant.", show_default=False)
    ] = None,
) -> None:
    """Write each ended run to MLflow until Ctrl-C. Reads the bus directly."""
    import asyncio

    from penstock.cli.wire import command_error
    from penstock.contracts.errors import PenstockError
    from penstock.settings import CoreSettings
    from penstock.sinks.process import run_mlflow_sink
    from penstock.telemetry import logs

    target = context.obj
    settings = CoreSettings(nats_url=target.nats_url, data_dir=target.data_dir)
    logs.configure(
        service=f"sink-{name}",
        instance_id=settings.instance_id,
        level=settings.log_level,
        style=settings.log_format,
    )
    work = run_mlflow_sink(
        settings,
        url=url,
        experiment=experiment,
        name=name,
        token=os.environ.get("MLFLOW_TRACKING_TOKEN"),
        only_tenant=only_tenant,
    )
    try:
        asyncio.run(work)
    except PenstockError as error:
        raise command_error(error) from error
