"""A worker process of one of the queues compared: `worker.py NAME`, started by `run` with the environment of `gate`."""

import logging
import os
import sys

from adapters import make
from gate import Gate


def main() -> None:
    logging.basicConfig(level=logging.WARNING)
    make(sys.argv[1], os.environ["PGQUEUE_DATABASE_URL"]).run_worker(Gate.of_worker())


if __name__ == "__main__":
    main()
