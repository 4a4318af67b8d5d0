"""The commands of the command line, by what they are about; importing this package registers all of them.

A module of its own for each group, on the app and the helpers of `ops.app`; a new one needs a line here.
"""

from . import (  # noqa: F401 - registered by being imported
    batches,
    capacity,
    doctor,
    events,
    jobs,
    look,
    queues,
    report,
    schedules,
    schema,
    serving,
    workers,
)
