"""Imports among all modules, those for type checkers included, have no cycle."""

from graphlib import CycleError, TopologicalSorter

import grimp
import pytest

PACKAGES = (
    *("penstock", "penstock_agent_runner", "penstock_archive", "penstock_gateway"),
    *("penstock_orchestrator", "penstock_registry", "penstock_testing", "penstock_tool_runner"),
)


@pytest.mark.sources
def test_imports_have_no_cycle() -> None:
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    imports = {one: graph.find_modules_directly_imported_by(one) for one in graph.modules}
    assert sum(len(imported) for imported in imports.values()) > len(imports) > 300
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        pytest.fail(f"cycle: {' -> '.join(error.args[1])}")
