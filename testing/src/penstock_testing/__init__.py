"""Test workflows in memory: the real compiler and the real core, with stubbed steps.

``LocalEngine`` compiles documents and runs them without a server; tools and agents are stubs, and
time is virtual. A distribution apart from ``penstock``, because it imports the cores of registry
and orchestrator, which ``penstock`` must not.
"""

from penstock_testing.engine import LocalEngine
from penstock_testing.run import LocalRun
from penstock_testing.stubs import NO_RESULT, Call, InOrder, route_to_agent, use_tools

__all__ = ["NO_RESULT", "Call", "InOrder", "LocalEngine", "LocalRun", "route_to_agent", "use_tools"]
