"""Requests to the archive to delete, restore and rebuild, and its replies."""

from __future__ import annotations

from penstock.contracts.facts import (
    Record,
)
from penstock.contracts.ids import Token


class EraseRun(Record):
    """Verb ``erase_run``: delete an ended run and its child runs for good, from log and archive.

    Refused as ``run_not_found``; ``run_not_ended`` where one of them has not ended.
    """

    tenant: Token
    run_id: str


class EraseSession(Record):
    """Verb ``erase_session``: delete a session and all its runs for good, if all have ended."""

    tenant: Token
    session_id: str


class EraseTenant(Record):
    """Verb ``erase_tenant``: delete all runs and sessions of a tenant, if all have ended."""

    tenant: Token


class Erased(Record):
    """Numbers of deleted runs and of their objects."""

    runs: int
    objects: int = 0
    """Large bodies that nothing else claims."""
    dead_letters: int = 0


class RestoreRun(Record):
    """Verb ``restore_run``: put the facts of an ended run back into the log that lost them.

    Refused as ``run_not_found``, or ``run_not_ended``: such a run continues by itself.
    """

    tenant: Token
    run_id: str


class Restored(Record):
    """The log has all facts of the run again."""

    run_id: str
    facts: int
    """Facts of the run."""
    restored: int
    """Those that the log did not have."""


class Rebuild(Record):
    """Verb ``rebuild``: make all tables anew from the log; answers ``ArchiveStatus``.

    It begins at once and continues after restarts; rows that the log has lost stay.
    """
