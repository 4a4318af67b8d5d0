"""The safeguards of the core, each with the text that takes it away and the tests that must then fail.

`run.py` takes one away at a time. tests/unit/test_mutants.py checks that each text is still there, so that a change of
the core cannot leave a mutant that changes nothing.
"""

from __future__ import annotations

from typing import NamedTuple


class Safeguard(NamedTuple):
    """`before`, wherever it stands in `file` of the core, becomes `after`; `tests` are paths below tests/."""

    name: str
    file: str
    before: str
    after: str
    tests: tuple[str, ...]


FENCING, CLAIMS = "conformance/test_fencing.py", "concurrency/test_claim_races.py"
MAINTENANCE, ORDER = "concurrency/test_maintenance_races.py", "concurrency/test_lock_order.py"

SAFEGUARDS = (
    Safeguard(
        "the fence: an ending names the lease",
        "sql.py",
        "      AND ((id, lease_token) IN (SELECT * FROM unnest(%(ids)b::bigint[], %(tokens)b::bigint[]))) IS TRUE\n",
        "      AND %(tokens)b::bigint[] IS NOT NULL\n",
        (FENCING,),
    ),
    Safeguard(
        "the fence grows at each claim",
        "sql.py",
        "lease_token = lease_token + 1,",
        "lease_token = 1,",
        (FENCING,),
    ),
    Safeguard(
        "an ending needs a running job",
        "sql.py",
        "    WHERE id = ANY (%(ids)b::bigint[]) AND status || '' = 'running'\n      AND ((id",
        "    WHERE id = ANY (%(ids)b::bigint[])\n      AND ((id",
        (FENCING,),
    ),
    Safeguard(
        "claims skip locked rows",
        "sql.py",
        "            ORDER BY job.run_at, job.id LIMIT want.slots\n            FOR UPDATE SKIP LOCKED\n",
        "            ORDER BY job.run_at, job.id LIMIT want.slots\n            FOR UPDATE\n",
        (CLAIMS,),
    ),
    Safeguard(
        "claims lock what they pick",
        "sql.py",
        "            ORDER BY job.run_at, job.id LIMIT want.slots\n            FOR UPDATE SKIP LOCKED\n",
        "            ORDER BY job.run_at, job.id LIMIT want.slots\n",
        (CLAIMS,),
    ),
    Safeguard(
        "a claim spends an attempt",
        "sql.py",
        "SET status = 'running', attempt = attempt + 1,",
        "SET status = 'running', attempt = greatest(attempt, 1),",
        ("conformance/test_attempts.py", "conformance/test_maintenance.py"),
    ),
    Safeguard(
        "bounded pushers take turns",
        "sql.py",
        "SELECT pg_advisory_xact_lock(hashtextextended('pgqueue:'",
        "SELECT (hashtextextended('pgqueue:'",
        ("concurrency/test_bound.py",),
    ),
    Safeguard(
        "the bound counts after it has the lock, at READ COMMITTED",
        "operations.py",
        'if rows[0][1] != "read committed":',
        'if rows[0][1] == "no such level":',
        ("conformance/test_backpressure.py",),
    ),
    Safeguard(
        "the rescue looks at the lease again",
        "sql.py",
        "WHERE id = ANY (ARRAY(SELECT id FROM picked)) AND status || '' = 'running' AND lease_expires_at < now()\n"
        "RETURNING id, status",
        "WHERE id = ANY (%(ids)b::bigint[])\nRETURNING id, status",
        (MAINTENANCE, CLAIMS),
    ),
    Safeguard(
        "the rescue skips locked rows",
        "sql.py",
        "    WHERE id = ANY (%(ids)b::bigint[]) AND status || '' = 'running' AND lease_expires_at < now()\n"
        "    FOR UPDATE SKIP LOCKED",
        "    WHERE id = ANY (%(ids)b::bigint[]) AND status || '' = 'running' AND lease_expires_at < now()\n"
        "    FOR UPDATE",
        (MAINTENANCE,),
    ),
    Safeguard(
        "a poisonous row does not stall the rescue of the others",
        "operations.py",
        "batches += [ids[: len(ids) // 2], ids[len(ids) // 2 :]]",
        "result.refused.extend(ids)",
        ("conformance/test_maintenance.py",),
    ),
    Safeguard(
        "retries by filter lock from the oldest and skip locked rows",
        "sql.py",
        "    ORDER BY finished_at, id LIMIT %(limit)s\n    FOR UPDATE SKIP LOCKED\n)\n{_FRESH} WHERE",
        "    ORDER BY finished_at, id LIMIT %(limit)s\n)\n{_FRESH} WHERE",
        (MAINTENANCE,),
    ),
    Safeguard(
        "batches lock in the order of ids",
        "sql.py",
        "{_MATCH} ORDER BY id FOR UPDATE))",
        "{_MATCH}))",
        (ORDER,),
    ),
    Safeguard(
        "batches of keys are pushed in the order of keys",
        "operations.py",
        "todo += [index for _, index in sorted(first.items())]",
        "todo += [index for _, index in first.items()]",
        (ORDER,),
    ),
    Safeguard(
        "a push of a key that exists inserts nothing",
        "sql.py",
        "ON CONFLICT (kind, external_key) WHERE external_key IS NOT NULL DO NOTHING\nRETURNING id, kind, external_key",
        "RETURNING id, kind, external_key",
        ("conformance/test_push.py", "concurrency/test_push_races.py"),
    ),
    Safeguard(
        "cancelling looks at the status after it has waited",
        "sql.py",
        " AND status IN ('pending', 'blocked', 'running')\n    RETURNING id",
        "\n    RETURNING id",
        (CLAIMS, "conformance/test_operators.py"),
    ),
    Safeguard(
        "cleanup deletes finished jobs only",
        "sql.py",
        " AND status IN ('succeeded', 'failed', 'cancelled')\n",
        "\n",
        ("conformance/test_maintenance.py",),
    ),
    Safeguard(
        "claims pass over paused queues",
        "sql.py",
        "    WHERE NOT EXISTS (SELECT FROM pgqueue_queues WHERE pgqueue_queues.queue = want.queue)\n",
        "",
        ("conformance/test_claim.py", "conformance/test_operators.py"),
    ),
)
