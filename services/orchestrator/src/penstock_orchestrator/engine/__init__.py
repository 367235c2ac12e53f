"""The engine's shell: it feeds the core from the bus and publishes what the core decides."""
