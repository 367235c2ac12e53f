"""The engine's core: what is to be done next, as pure functions of plan and state."""
