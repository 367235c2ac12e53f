"""The orchestrator: folds the log of a run into state and publishes the next decision."""
