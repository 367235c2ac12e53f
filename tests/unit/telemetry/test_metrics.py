import re

from prometheus_client import generate_latest
from prometheus_client.metrics import MetricWrapperBase

from penstock.telemetry import metrics


def test_consumer_metrics_are_looked_up_once() -> None:
    assert metrics.consumer_metrics("engine_0") is metrics.consumer_metrics("engine_0")


def test_step_metrics_count_under_their_labels() -> None:
    children = metrics.step_metrics("tool", "names_test")

    children.late.inc()
    children.seconds.observe(0.2)

    text = generate_latest().decode()
    labels = 'kind="tool",outcome="late",queue="names_test"'
    assert f"penstock_runner_steps_total{{{labels}}} 1.0" in text
    assert 'penstock_runner_step_seconds_count{kind="tool",queue="names_test"} 1.0' in text


def test_names_say_subsystem_and_unit_and_labels_are_bounded() -> None:
    found = [value for value in vars(metrics).values() if isinstance(value, MetricWrapperBase)]

    assert found
    for metric in found:
        name = next(iter(metric.describe())).name
        assert re.fullmatch(r"penstock_(bus|runner|loop)(_[a-z]+)+", name)
        assert not {"run", "run_id", "user", "tenant"} & set(metric._labelnames)
