"""The archive: every fact of the log in order, and tables projected from them to be asked.

It is always behind the log and may be away for hours: no run waits for it.
"""
