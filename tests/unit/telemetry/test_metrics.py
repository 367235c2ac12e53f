import re

from prometheus_client import generate_latest
from prometheus_client.metrics import MetricWrapperBase

from penstock.telemetry import metrics, tallies


def test_step_metrics_are_looked_up_once() -> None:
    assert metrics.step_metrics("tool", "q") is metrics.step_metrics("tool", "q")


def test_tallies_become_metrics_when_somebody_asks() -> None:
    tally = tallies.consumer_tally("tally_test")
    tally.acked += 3
    tally.redelivered += 1
    before = tallies.WRITER.acknowledged
    tallies.WRITER.acknowledged += 2

    text = generate_latest().decode()

    deliveries = "penstock_bus_deliveries_total"
    assert f'{deliveries}{{consumer="tally_test",outcome="ack"}} 3.0' in text
    assert 'penstock_bus_redeliveries_total{consumer="tally_test"} 1.0' in text
    assert f"penstock_bus_published_messages_total {before + 2}.0" in text
    assert tallies.consumer_tally("tally_test") is tally


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
