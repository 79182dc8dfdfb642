"""A server's processes: each PostgreSQL backend leads a session of its own, so no group signal reaches them all."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path


def children(pid: int) -> list[int]:
    """The living children of a process, in no order."""
    proc = Path("/proc")
    if (proc / "self/stat").exists():
        processes = [(int(path.name), _stat(path)) for path in proc.iterdir() if path.name.isdigit()]
        return [child for child, fields in processes if fields and int(fields[1]) == pid]
    listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    return [int(child) for child, parent in (line.split() for line in listing.splitlines()) if int(parent) == pid]


def alive(pid: int) -> bool:
    """False for a zombie too: it waits for a reaper and does nothing any more."""
    if Path("/proc/self/stat").exists():
        return _stat(Path(f"/proc/{pid}"))[:1] not in ([], ["Z"], ["X"])
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _stat(process: Path) -> list[str]:
    """State, parent and so on; empty once the process is gone. The name before them may hold any character."""
    try:
        return (process / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []
