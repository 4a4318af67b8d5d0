"""Whatever a push takes, the claim gives back as it was; whatever it does not take, it refuses."""

from __future__ import annotations

import pytest

hypothesis = pytest.importorskip("hypothesis")

from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

fuzzed = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
texts = st.text(st.characters(codec=None), max_size=12)  # NUL and lone surrogates too
# jsonb keeps digits, not types: a larger whole float comes back as the integer that its digits make.
whole = 2.0**53
numbers = st.one_of(st.integers(-(2**70), 2**70), st.floats(-whole, whole))
payloads = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=12,
)
names = st.one_of(texts, st.text("aé\U0001f418'\"%\\", max_size=400))


def storable(value: object) -> bool:
    """Whether PostgreSQL can store every text in it: no NUL, no lone surrogate."""
    if isinstance(value, dict):
        return all(storable(part) for item in value.items() for part in item)
    if isinstance(value, list):
        return all(map(storable, value))
    return not isinstance(value, str) or not any(c == "\0" or "\ud800" <= c <= "\udfff" for c in value)


@fuzzed
@given(payload=payloads)
def test_a_payload_comes_back_as_it_was_pushed_or_is_refused(queue, db, core, payload):
    if not storable(payload):
        with pytest.raises(core.InvalidJob):
            queue.push("mail", payload, metadata={"copy": payload})
        return
    db.execute("DELETE FROM pgqueue_jobs")  # what an example that failed left
    pushed = queue.push("mail", payload, metadata={"copy": payload})
    (job,) = queue.claim([core.Want("mail", 1)], worker="w")
    assert (job.id, job.payload, job.metadata) == (pushed.id, payload, {"copy": payload})
    queue.complete(job, ttl=0)


@fuzzed
@given(kind=names, where=names, key=names)
def test_names_and_keys_come_back_and_find_their_job_or_are_refused(queue, db, core, kind, where, key):
    fits = all(
        storable(name) and 0 < len(name.encode()) <= most for name, most in ((kind, 255), (where, 255), (key, 1024))
    )
    if not fits:
        with pytest.raises(core.InvalidJob):
            queue.push(kind, queue=where, key=key)
        return
    db.execute("DELETE FROM pgqueue_jobs")  # what an example that failed left
    pushed = queue.push(kind, queue=where, key=key)
    assert queue.push(kind, queue=where, key=key) == (pushed.id, False)
    (job,) = queue.claim([core.Want(kind, 1, queue=where)], worker="w")
    assert (job.id, job.kind, job.queue, job.external_key) == (pushed.id, kind, where, key)
    assert queue.cancel_key(kind, key, ttl=0)
