"""The runner SDK: what a program needs to do a part of Penstock's work.

``Runner`` is given handlers by decorator and consumes the steps of one queue; ``StepContext`` is
what a handler is told about its step. Everything else in this package is their inside.
"""

from penstock.runner.context import StepContext
from penstock.runner.runner import Runner

__all__ = ["Runner", "StepContext"]
