"""What the workers under test run: the application `handlers:kinds`, as any user would write one.

Handlers report two integers through the pipe that BENCH_REPORTS names, which `workers.Reports` reads.
"""

from __future__ import annotations

import os
import struct
import time
from functools import cache

import psutil

from pgqueue_ref.worker import Job, Kinds

PAIR = struct.Struct("qq")
kinds = Kinds()
_process = psutil.Process()
_done = 0


@cache
def _pipe() -> int:
    return os.open(os.environ["BENCH_REPORTS"], os.O_WRONLY)


def report(first: int, second: int) -> None:
    """Tell the benchmark. Shorter than PIPE_BUF, so that writers do not mix."""
    os.write(_pipe(), PAIR.pack(first, second))


@kinds.register("pickup", terminal_ttl=0)
async def pickup(job: Job) -> None:
    """Report when job number `payload` began: the first thing it does is to look at the clock."""
    report(job.payload, time.monotonic_ns())


@kinds.register("count", terminal_ttl=0)
async def count(job: Job) -> None:
    """Report this process's resident bytes at every `payload`-th job."""
    global _done
    _done += 1
    if _done % job.payload == 0:
        report(_done, _process.memory_info().rss)
