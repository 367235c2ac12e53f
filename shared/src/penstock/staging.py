"""Atomic batches of a lone nats-server are staged in memory instead of on disk.

A single server (one replica) gathers each atomic batch in its own small file store, under
``streams/{name}/batches``, before it copies the batch into the stream, syncs that and answers. The
staging costs more than the commit, and protects nothing: a batch is acknowledged only after the
stream is synced, and the server throws all staged batches away when it starts. So the folder may
as well be in memory. Clusters stage in memory by themselves. See ADR 0003.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Final

MEMORY: Final = Path("/dev/shm")  # noqa: S108 - a file system in memory, not a temporary file
_BATCHES: Final = "batches"


def memory_folder(store: Path) -> Path:
    """Return the folder in memory that belongs to a store; the same for each start."""
    name = hashlib.sha256(str(store.absolute()).encode()).hexdigest()[:16]
    return MEMORY / f"penstock-{os.getuid()}-{name}"


def stage_in_memory(store: Path, stream: str) -> bool:
    """Let a running server stage the batches of ``stream`` in memory, from its next batch on.

    Args:
        store: The server's ``store_dir``; the server has recovered its streams already.
        stream: Name of a stream of the default account; it need not exist yet.

    Returns:
        Whether it does: not where there is no memory file system, and not while a batch is staged.
    """
    if not (MEMORY.is_dir() and os.access(MEMORY, os.W_OK)):
        return False
    link = store / "jetstream" / "$G" / "streams" / stream / _BATCHES
    link.parent.mkdir(parents=True, exist_ok=True)
    target = memory_folder(store)
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(mode=0o700)
    try:
        if link.is_dir() and not link.is_symlink():
            link.rmdir()
        link.symlink_to(target, target_is_directory=True)
    except OSError:
        # A client was faster and its batch is being staged on disk: so be it until the next start.
        return False
    return True


def forget_memory(store: Path) -> None:
    """Remove the folder in memory; harmless if there is none."""
    shutil.rmtree(memory_folder(store), ignore_errors=True)
