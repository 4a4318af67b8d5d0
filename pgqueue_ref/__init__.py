"""pgqueue_ref: the reference PostgreSQL job queue for Python. The queue itself is `pgqueue_ref.core`."""

from .core import *  # noqa: F403 - the package's front door is the core's
from .core import __all__ as __all__

__version__ = "0.1.0"
