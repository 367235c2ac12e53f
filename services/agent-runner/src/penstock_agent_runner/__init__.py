"""The agent-runner: one LLM turn per step, through LiteLLM or a scripted model."""
