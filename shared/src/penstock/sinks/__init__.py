"""Sinks: subscribers that tell other systems what became of runs."""
