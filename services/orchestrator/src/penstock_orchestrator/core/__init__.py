"""The engine's core: the next actions, as pure functions of plan and state."""
