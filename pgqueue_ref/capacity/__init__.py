"""How many workers, slots and connections a load needs, which limits to set, and what breaks first.

`measure` asks a server what it can do, `model` has the waiting-time formulas, `simulate` plays the queue where formulas
do not hold, `plan` puts them together, `validate` runs the plan for real and compares. Called by `pgqueue-ref capacity`
(ops/commands/capacity.py); needs pgqueue-ref[capacity].
"""

from __future__ import annotations


class CapacityError(ValueError):
    """Something asked of capacity planning that cannot be answered. Its text is one line for people."""
