"""What goes beyond the core: each one file on its public operations, with its own tables, usable without the others.

A worker asks at its start which of `EXTENSIONS` are installed in its schema, does their maintenance, and runs without
those that are not there. A new one needs a line here, a revision in `migrations/versions`, its tables in the MetaData
of `pgqueue_ref.sqlalchemy`, and a page in `docs/extensions`.
"""

from .dependencies import DEPENDENCIES
from .events import EVENTS
from .extension import Chore, Extension, installed, within
from .results import RESULTS
from .schedules import SCHEDULES

EXTENSIONS: tuple[Extension, ...] = (DEPENDENCIES, EVENTS, RESULTS, SCHEDULES)

__all__ = ["EXTENSIONS", "Chore", "Extension", "installed", "within"]
