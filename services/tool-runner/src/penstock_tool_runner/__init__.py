"""The tool-runner: one tool call per step, its arguments checked before anything runs."""
