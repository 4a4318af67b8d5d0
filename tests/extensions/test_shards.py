"""Shards: where a key goes, what moves when there is one more, and what a dead one does to the others."""

import asyncio
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from pgqueue_ref.core import SCHEMA_SQL, DatabaseUnavailable, InvalidJob, NewJob, QueueBusy, QueueError, SchemaMissing
from pgqueue_ref.extensions.shards import AsyncShardedQueue, Shard, ShardedQueue, ShardsFailed, ShardUnavailable

NOWHERE = "postgresql://user:secret@127.0.0.1:1/app"
KEYS = [f"photo-{number}" for number in range(10_000)]


def sharded(*names: str, **options: Any) -> ShardedQueue:
    """Shards that nobody connects to."""
    return ShardedQueue([Shard(name, NOWHERE) for name in names], **options)


# -- where a key goes ------------------------------------------------------------------------------------------


def test_a_key_goes_to_the_shard_it_went_to_in_the_first_release() -> None:
    shards = sharded("a", "b", "c")
    assert [shards.shard_of(key) for key in ("photo-1", "photo-2", "photo-3", "photo-4", "ключ")] == list("cabaa")


def test_the_order_and_addresses_of_shards_do_not_matter_nor_does_the_process() -> None:
    shards = sharded("a", "b", "c", "d")
    others = ShardedQueue([Shard(name, f"postgresql://{name}.internal/other") for name in "dbca"])
    expected = [shards.shard_of(key) for key in KEYS[:200]]
    assert [others.shard_of(key) for key in KEYS[:200]] == expected
    program = f"""
from pgqueue_ref.extensions.shards import Shard, ShardedQueue
shards = ShardedQueue([Shard(name, {NOWHERE!r}) for name in "cadb"])
print(*(shards.shard_of(f"photo-{{number}}") for number in range(200)))
"""
    seeded = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONHASHSEED": "7"}, capture_output=True, text=True
    )
    assert seeded.stdout.split() == expected, seeded.stderr


def test_every_shard_gets_its_share() -> None:
    found = Counter(map(sharded("a", "b", "c", "d", "e").shard_of, KEYS))
    assert len(found) == 5
    assert all(abs(count - 2000) < 5 * 40 for count in found.values()), found  # sigma: sqrt(10,000 * 1/5 * 4/5) = 40


def test_a_new_shard_takes_its_share_and_nothing_moves_between_the_old_ones() -> None:
    before, after = sharded("a", "b", "c", "d"), sharded("a", "b", "c", "d", "e")
    moves = Counter((before.shard_of(key), after.shard_of(key)) for key in KEYS)
    moved = {pair: count for pair, count in moves.items() if pair[0] != pair[1]}
    assert {to for _, to in moved} == {"e"}
    assert abs(sum(moved.values()) - 2000) < 5 * 40, moved
    assert all(abs(count - 500) < 5 * 22 for count in moved.values()), moved  # from each: sqrt(10,000 * 1/20 * 19/20)


# -- what is refused -------------------------------------------------------------------------------------------


def test_shards_without_a_name_or_with_the_same_one_are_refused() -> None:
    for names in ((), ("a", "a"), ("",), ("a\0",)):
        with pytest.raises(InvalidJob):
            sharded(*names)
    with pytest.raises(QueueError, match="not understood"):
        ShardedQueue([Shard("a", "postgresql://user:p@ss@host/app")])


def test_a_job_without_a_shard_key_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(InvalidJob, match="push it with a key"):
        sharded("a").push("mail")
    with pytest.raises(InvalidJob, match="push it with a key"):
        sharded("a").push_many([NewJob("mail", key="k"), NewJob("mail")])
    with pytest.raises(InvalidJob, match="shard key must be a text"):
        sharded("a", shard_key=lambda job: job.payload["tenant"]).push("mail", {"tenant": 7})
    with pytest.raises(InvalidJob, match="there is no shard 'z', only 'a'"):
        sharded("a").queue("z")


def test_the_error_names_the_shard_and_no_password() -> None:
    with pytest.raises(ShardUnavailable, match="shard 'eu'") as refused:
        sharded("eu").push("mail", key="k")
    assert refused.value.shard == "eu"
    assert isinstance(refused.value, DatabaseUnavailable)
    assert "secret" not in str(refused.value)


# -- three servers, one of them killed -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def servers(provisioned: Callable[..., Any]) -> Iterator[dict[str, Any]]:
    """Three servers with the schema."""
    running: dict[str, Any] = {}
    try:
        for name in "abc":
            running[name] = provisioned("embedded")
            with psycopg.connect(running[name].dsn, autocommit=True) as connection:
                connection.execute(SCHEMA_SQL)
        yield running
    finally:
        for server in running.values():
            server.close()


@pytest.fixture
def shards(servers: dict[str, Any]) -> list[Shard]:
    for server in servers.values():
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            connection.execute("TRUNCATE pgqueue_jobs")
    return [Shard(name, server.dsn) for name, server in servers.items()]


def count(shards: list[Shard]) -> dict[str, int]:
    """Jobs on each shard."""
    found = {}
    for shard in shards:
        with psycopg.connect(shard.dsn) as connection:
            ((found[shard.name],),) = connection.execute("SELECT count(*) FROM pgqueue_jobs").fetchall()
    return found


def test_jobs_lie_where_their_keys_say_and_answers_keep_the_order_given(shards: list[Shard]) -> None:
    jobs = [NewJob("mail", number, key=f"k{number}") for number in range(60)]
    with ShardedQueue(shards) as queue:
        first = queue.push_many(jobs)
        assert all(pushed.created for pushed in first)
        assert [queue.push("mail", key=job.key) for job in jobs] == [pushed._replace(created=False) for pushed in first]
        for job, pushed in zip(jobs, first, strict=True):
            assert queue.queue(queue.shard_of(str(job.key))).get(pushed.id).external_key == job.key
        stats, silent = queue.stats()
    assert {name: sum(stat.jobs for stat in found) for name, found in stats.items()} == count(shards)
    assert (sum(count(shards).values()), silent) == (60, {})


def test_a_tenant_s_jobs_lie_together_when_the_shard_key_says_so(shards: list[Shard]) -> None:
    with ShardedQueue(shards, shard_key=lambda job: job.payload["tenant"]) as queue:
        queue.push_many([NewJob("mail", {"tenant": "acme", "number": number}) for number in range(9)])
        assert count(shards) == {name: 9 if name == queue.shard_of("acme") else 0 for name in "abc"}


def test_the_bound_holds_on_each_shard_and_is_told_by_its_own_error(shards: list[Shard]) -> None:
    with ShardedQueue(shards[:1], max_in_flight=1) as queue:
        queue.push("mail", key="k0")
        with pytest.raises(QueueBusy):
            queue.push("mail", key="k1")


def test_a_shard_that_is_down_fails_its_own_pushes_only_and_takes_them_when_it_is_back(
    servers: dict[str, Any], shards: list[Shard]
) -> None:
    jobs = [NewJob("mail", key=f"k{number}") for number in range(30)]
    with ShardedQueue(shards) as queue:
        homes = [queue.shard_of(str(job.key)) for job in jobs]
        assert set(homes) == set("abc")
        queue.push("mail", key="first")  # some connections are open when it dies, some are not
        servers["b"].kill()
        with pytest.raises(
            ShardsFailed, match=f"{homes.count('b')} of 30 jobs were not pushed; shard 'b': "
        ) as refused:
            queue.push_many(jobs)
        assert list(refused.value.failures) == ["b"]
        assert [pushed is None for pushed in refused.value.pushed] == [home == "b" for home in homes]
        for job, home in zip(jobs, homes, strict=True):
            if home != "b":
                assert not queue.push("mail", key=job.key).created
        with pytest.raises(ShardUnavailable, match="shard 'b'"):
            queue.push("mail", key=jobs[homes.index("b")].key)
        stats, silent = queue.stats()
        assert (set(stats), set(silent)) == ({"a", "c"}, {"b"})
        servers["b"].start()
        again = queue.push_many(jobs)
        assert [pushed.created for pushed in again] == [home == "b" for home in homes]


def test_the_asynchronous_face_keeps_the_same_promises(servers: dict[str, Any], shards: list[Shard]) -> None:
    jobs = [NewJob("mail", key=f"k{number}") for number in range(30)]

    async def scenario() -> None:
        async with AsyncShardedQueue(shards) as queue:
            homes = [queue.shard_of(str(job.key)) for job in jobs]
            first = await queue.push_many(jobs)
            singly = await asyncio.gather(*(queue.push("mail", key=job.key) for job in jobs))
            assert singly == [pushed._replace(created=False) for pushed in first]
            servers["b"].kill()
            with pytest.raises(ShardsFailed) as refused:
                await queue.push_many(jobs)
            assert [pushed is None for pushed in refused.value.pushed] == [home == "b" for home in homes]
            with pytest.raises(ShardUnavailable, match="shard 'b'"):
                await queue.push("mail", key=jobs[homes.index("b")].key)
            stats, silent = await queue.stats()
            assert (set(stats), set(silent)) == ({"a", "c"}, {"b"})
            servers["b"].start()
            assert (await queue.stats()).silent == {}
            assert (await (await queue.queue("b")).get(first[homes.index("b")].id)).kind == "mail"

    asyncio.run(scenario())


def test_a_refused_push_takes_no_other_back_that_came_at_the_same_time(shards: list[Shard]) -> None:
    async def scenario() -> None:
        async with AsyncShardedQueue(shards[:1], max_in_flight=1) as queue:
            await queue.push("mail", key="z", queue="full")
            names = [f"k{number}" for number in range(20)]
            asked = [queue.push("mail", key=name, queue="full" if name[-1] in "02468" else name) for name in names]
            answers = await asyncio.gather(*asked, return_exceptions=True)
            assert {isinstance(answer, QueueBusy) for answer in answers[::2]} == {True}
            rows = await (await queue.queue(shards[0].name)).list_jobs()
            assert sorted(str(row.external_key) for row in rows) == sorted(["z", *names[1::2]])

    asyncio.run(scenario())


def test_a_shard_without_the_schema_is_named_with_its_advice(shards: list[Shard], empty_database: str) -> None:
    with ShardedQueue([shards[0], Shard("new", empty_database)]) as queue:
        with pytest.raises(ShardsFailed, match=r"shard 'new': queue schema is missing") as refused:
            queue.push_many([NewJob("mail", key=f"k{number}") for number in range(20)])
        assert isinstance(refused.value.failures["new"], SchemaMissing)
