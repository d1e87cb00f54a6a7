"""Disks that are full, or may only be read, for a moment.

A full disk is a limit on the size of files (RLIMIT_FSIZE) put on a server that runs: its writes past it fail, with
EFBIG where a full disk says ENOSPC and an exhausted quota EDQUOT. It needs no rights but those of the account that the
server runs under, and it ends with the process at the latest. Only Linux lets one set it for another process.
"""

from __future__ import annotations

import asyncio
import resource
import sys
from collections.abc import Sequence

import psutil

# Nothing at all may be written.
FULL = 0
# The log of PostgreSQL goes on in its files of 16 MiB, tables do not grow beyond that.
FULL_FOR_TABLES = 16 * 1024 * 1024
ROOMY = resource.RLIM_INFINITY
POSSIBLE = hasattr(resource, "prlimit")

_SECONDS = 10.0
# Root may lack the right to do it to others' processes, so it becomes the server's account first.
_LIMIT = """
import os, resource, sys
uid, gid, limit, *pids = map(int, sys.argv[1:])
if os.geteuid() != uid:
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
for pid in pids:
    try:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (limit, resource.prlimit(pid, resource.RLIMIT_FSIZE)[1]))
    except ProcessLookupError:
        pass
"""


async def limit_files(pid: int, limit: int) -> None:
    """Limit the files of a server and its children, those to come included.

    Parameters: `pid` of the server; `limit` bytes of a file, or `ROOMY` for none. Raises `psutil.NoSuchProcess` when it
    does not run, `OSError` when it cannot be done.
    """
    server = psutil.Process(pid)
    uid, gid = server.uids().real, server.gids().real
    # The server first: children that it starts from now on have it by themselves.
    await _limit(uid, gid, limit, [pid])
    await _limit(uid, gid, limit, [child.pid for child in server.children(recursive=True)])


async def _limit(uid: int, gid: int, limit: int, pids: Sequence[int]) -> None:
    if not pids:
        return
    numbers = [str(number) for number in (uid, gid, limit, *pids)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-S", "-c", _LIMIT, *numbers, stdin=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(_SECONDS):
            code = await process.wait()
    except BaseException:
        process.kill()
        raise
    if code:
        raise OSError(f"no limit could be set on processes {pids}")
