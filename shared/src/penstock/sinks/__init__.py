"""Sinks: subscribers that report the ends of runs to other systems."""
