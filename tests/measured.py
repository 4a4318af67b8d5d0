"""A measurement for tests of plans, as `capacity measure` writes it."""

from __future__ import annotations

from pgqueue_ref.capacity import service
from pgqueue_ref.capacity.measurement import Measurement

MEASURED = Measurement(
    server={"description": "embedded PostgreSQL 18.4"}, machine={}, versions={}, command="", slots=100,
    connections_per_worker=3, max_connections=100, reserved=3, others=1,
    push_by_batch={1: 1e-3}, claim_by_batch={1: 1e-3}, complete_by_batch={1: 1e-3},
    claim=[0.001, 0.002, 0.003], pickup=[0.001, 0.002, 0.01],
    scaling={1: 5_000.0, 2: 8_000.0, 4: 11_000.0}, service=service.of_spec("exp:0.5"),
)  # fmt: skip
