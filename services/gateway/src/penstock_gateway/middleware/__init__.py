"""Around every request: headers, limits, callers and errors."""
