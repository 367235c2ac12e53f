"""Lists, reports and deletions, which the archive answers."""
