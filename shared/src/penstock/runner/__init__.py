"""The runner SDK: all that the author of a runner imports.

``Runner`` takes handlers by decorator and consumes the steps of one queue; ``StepContext`` is a
handler's view of its step. A handler raises ``RejectedError`` to fail for good and
``TransientError`` to be called again; an agent records its ``Usage``.
"""

from penstock.contracts.errors import RejectedError, TransientError
from penstock.contracts.usage import Usage
from penstock.runner.context import StepContext
from penstock.runner.runner import Runner

__all__ = ["RejectedError", "Runner", "StepContext", "TransientError", "Usage"]
