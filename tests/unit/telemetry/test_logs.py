import io
import json
import logging
from collections.abc import Iterator

import pytest

from penstock.telemetry.logs import EventLog, bind, bound, configure


@pytest.fixture(autouse=True)
def restore_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    logging.captureWarnings(capture=False)
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def stream() -> io.StringIO:
    target = io.StringIO()
    configure(service="registry", instance_id="r-1", stream=target)
    return target


def test_event_as_json_has_service_fields_and_all_ids(stream: io.StringIO) -> None:
    with bind(tenant="acme", run_id="R1"):
        EventLog("penstock.test").info("run.step_scheduled", step_id="s", attempt=1)

    line = json.loads(stream.getvalue())
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "info",
        "event": "run.step_scheduled",
        "service": "registry",
        "instance_id": "r-1",
        "tenant": "acme",
        "run_id": "R1",
        "step_id": "s",
        "trace_id": None,
        "attempt": 1,
    }


def test_bind_ends_with_its_block_and_inner_wins() -> None:
    with bind(tenant="a", run_id="r"):
        with bind(tenant="b"):
            assert bound() == {"tenant": "b", "run_id": "r"}
        assert bound() == {"tenant": "a", "run_id": "r"}
    assert bound() == {}


def test_field_named_as_a_record_attribute_is_kept(stream: io.StringIO) -> None:
    EventLog("penstock.test").info("a.b", name="n", message="m")

    line = json.loads(stream.getvalue())
    assert (line["name"], line["message"]) == ("n", "m")


def test_error_carries_its_traceback_on_one_line(stream: io.StringIO) -> None:
    EventLog("penstock.test").error("a.failed", ValueError("why\nso"))

    assert stream.getvalue().count("\n") == 1
    assert "ValueError: why\nso" in json.loads(stream.getvalue())["error"]


def test_plain_logging_below_penstock_is_an_event(stream: io.StringIO) -> None:
    logging.getLogger("penstock.bus").warning("bus.closed", extra={"run_id": "r"})

    line = json.loads(stream.getvalue())
    assert (line["event"], line["run_id"]) == ("bus.closed", "r")


def test_record_of_another_library_is_a_log_message(stream: io.StringIO) -> None:
    logging.getLogger("other").warning("50%% of %s", "x")

    line = json.loads(stream.getvalue())
    assert (line["event"], line["logger"], line["message"]) == ("log.message", "other", "50% of x")


def test_level_below_the_configured_one_is_not_written(stream: io.StringIO) -> None:
    EventLog("penstock.test").debug("a.b")
    logging.getLogger("httpx").info("chatty")

    assert stream.getvalue() == ""


def test_console_is_one_short_line_that_no_field_can_forge() -> None:
    target = io.StringIO()
    configure(service="gateway", instance_id="g", style="console", stream=target)

    EventLog("penstock.test").info("a.b", text="x\n\x1b[31mFORGED", n=1, none=None)

    line = target.getvalue()
    assert line.count("\n") == 1
    assert "\x1b" not in line
    assert line.split(" ", 1)[1].startswith("INFO    gateway      a.b text=")
    assert line.endswith(" n=1\n")


def test_value_that_json_does_not_know_is_written_as_text(stream: io.StringIO) -> None:
    EventLog("penstock.test").info("a.b", value={1, 2}.__class__)

    assert json.loads(stream.getvalue())["value"] == "<class 'set'>"
