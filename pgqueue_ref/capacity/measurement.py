"""What a server and one worker can do, as `measure` found it and a file keeps it.

Called by `measure` (which makes one), `plan`, `validate` and the command line (which read it).
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pgqueue_ref.capacity import CapacityError, service, usl

FORMAT = 1  # grows when a field changes its meaning


@dataclass(frozen=True, slots=True)
class Measurement:
    """Times in seconds. `*_by_batch` are seconds for each job by how many one statement takes; `scaling` jobs a second
    by number of workers, with handlers that do nothing; `pickup` and `claim` single times, ascending.
    """

    server: Mapping[str, Any]
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    command: str
    slots: int  # of each worker that was measured
    connections_per_worker: int
    max_connections: int
    reserved: int
    others: int  # connections of everybody else, while nothing was measured
    push_by_batch: Mapping[int, float]
    claim_by_batch: Mapping[int, float]
    complete_by_batch: Mapping[int, float]
    claim: Sequence[float]  # of one job from an empty head of the queue
    pickup: Sequence[float]  # from the push to the start of the attempt, by an idle worker
    scaling: Mapping[int, float]
    service: service.Service

    @property
    def law(self) -> usl.Scaling:
        """How throughput grows with workers."""
        return usl.fit(self.scaling)

    def draw_claim(self) -> Callable[[random.Random], float]:
        """A claim's duration, one of those measured."""
        seen = list(self.claim)
        return lambda rng: rng.choice(seen)

    def document(self) -> dict[str, Any]:
        """As JSON."""
        fields = asdict(self) | {"service": self.service.document()}
        for name in ("push_by_batch", "claim_by_batch", "complete_by_batch", "scaling"):
            fields[name] = {str(key): value for key, value in fields[name].items()}
        law = self.law
        fitted = {**law._asdict(), "most_workers": _finite(law.most_workers), "peak": _finite(law.peak)}
        return {"format": FORMAT, **fields, "fitted": fitted}


def save(measurement: Measurement, path: Path) -> None:
    """Write the file. Raises `CapacityError`."""
    try:
        path.write_text(json.dumps(measurement.document(), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise CapacityError(f"{path}: cannot be written ({error.strerror})") from error


def load(path: Path) -> Measurement:
    """Read the file. Raises `CapacityError`."""
    document = read_json(path, FORMAT, "pgqueue-ref capacity measure")
    try:
        fields = {name: document[name] for name in Measurement.__dataclass_fields__}
        for name in ("push_by_batch", "claim_by_batch", "complete_by_batch", "scaling"):
            fields[name] = {int(key): float(value) for key, value in fields[name].items()}
        if empty := [name for name in ("claim", "pickup") if not fields[name]]:
            raise ValueError(f"no times of {' and '.join(empty)}")
        return Measurement(**fields | {"service": service.of_document(fields["service"])})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CapacityError(
            f"{path}: not a measurement ({error}); make it with pgqueue-ref capacity measure"
        ) from error


def read_json(path: Path, format_: int, maker: str) -> dict[str, Any]:
    """A file of ours of this format. Raises `CapacityError`."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CapacityError(f"{path}: cannot be read ({error.strerror}); make it with {maker}") from error
    except ValueError as error:
        raise CapacityError(f"{path}: not JSON ({error}); make it again with {maker}") from error
    found = document.get("format") if isinstance(document, dict) else None
    if found != format_:
        raise CapacityError(f"{path}: format {found!r}, this version reads {format_}; make it again with {maker}")
    result: dict[str, Any] = document
    return result


def _finite(value: float) -> float | None:
    return value if value < float("inf") else None
