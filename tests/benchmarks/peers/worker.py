"""A worker process of a queue under comparison: `worker.py NAME [LEASE]`, with the environment of `gate`."""

import logging
import os
import sys

from adapters import make
from gate import Gate


def main() -> None:
    logging.basicConfig(level=logging.WARNING)
    name, *lease = sys.argv[1:]
    make(name, os.environ["PGQUEUE_DATABASE_URL"]).run_worker(Gate.of_worker(), *map(int, lease))


if __name__ == "__main__":
    main()
