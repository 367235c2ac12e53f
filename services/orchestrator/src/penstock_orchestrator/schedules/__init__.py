"""Schedules: runs that start at certain times, once however many engines there are."""
