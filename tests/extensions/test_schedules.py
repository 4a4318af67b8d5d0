"""Schedules: when they fire, that they fire once, and what is made up, on a server whose clock the test moves."""

import asyncio
import contextlib
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest
from waiting import eventually, until

from pgqueue_ref.core import AsyncQueue, InvalidJob, Queue, QueueError, SchemaMissing
from pgqueue_ref.extensions import schedules
from pgqueue_ref.extensions.schedules import ScheduleNotFound, Timing
from pgqueue_ref.testing import Clock, clock_dsn, install_clock
from pgqueue_ref.worker import Kinds, Worker

BERLIN = ZoneInfo("Europe/Berlin")
NEW_YEAR = datetime(2027, 1, 1, tzinfo=UTC)


def berlin(*wall: int, fold: int = 0) -> datetime:
    return datetime(*wall, tzinfo=BERLIN, fold=fold).astimezone(UTC)  # type: ignore[misc,arg-type]  # five numbers


@pytest.fixture
def dsn(database: str) -> str:
    """A database with schedules and a clock; its sessions live in Berlin, where wall clocks jump."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(schedules.SCHEMA_SQL)
        install_clock(connection, "public")
        connection.execute("ALTER DATABASE " + connection.info.dbname + " SET timezone = 'Europe/Berlin'")
    return clock_dsn(database, "public")


@pytest.fixture
def queue(dsn: str) -> Iterator[Queue]:
    with Queue.connect(dsn) as queue:
        yield queue


@pytest.fixture
def clock(queue: Queue) -> Clock:
    """Stands at the beginning of 2027."""
    clock = Clock(queue)
    clock.freeze(NEW_YEAR)
    return clock


def fired(queue: Queue) -> list[tuple[str, datetime]]:
    done = queue.run(schedules.fire())
    assert done.refused == {}
    return done.fired


def keys(queue: Queue) -> list[str | None]:
    return [job.external_key for job in queue.list_jobs()]


# -- when: the wall clock of Berlin -----------------------------------------------------------------------------

SPRING, AUTUMN = (2027, 3, 28), (2027, 10, 31)  # at 2:00 to 3:00 summer time, at 3:00 back to 2:00
NIGHTS = {
    # A time that the day does not have fires at the end of the gap, once; the day after as always.
    "a missing time fires at the end of the gap": (
        "30 2 * * *", SPRING, [berlin(*SPRING, 3, 0), berlin(2027, 3, 29, 2, 30)]),
    "several missing times fire once together": (
        "0,15,30 2 * * *", SPRING, [berlin(*SPRING, 3, 0), berlin(2027, 3, 29, 2, 0)]),
    "every half hour goes on over the gap": (
        "*/30 * * * *", SPRING, [berlin(*SPRING, 0, 30), berlin(*SPRING, 1, 0), berlin(*SPRING, 1, 30),
                                 berlin(*SPRING, 3, 0), berlin(*SPRING, 3, 30)]),
    "a fixed time in the hour that comes twice fires in the first": (
        "30 2 * * *", AUTUMN, [berlin(*AUTUMN, 2, 30), berlin(2027, 11, 1, 2, 30)]),
    "every half hour fires through both hours": (
        "*/30 * * * *", AUTUMN, [berlin(*AUTUMN, 0, 30), berlin(*AUTUMN, 1, 0), berlin(*AUTUMN, 1, 30),
                                 berlin(*AUTUMN, 2, 0), berlin(*AUTUMN, 2, 30), berlin(*AUTUMN, 2, 0, fold=1),
                                 berlin(*AUTUMN, 2, 30, fold=1), berlin(*AUTUMN, 3, 0)]),
    "every other hour leaves out the one that is missing": (
        "0 */2 * * *", SPRING, [berlin(*SPRING, 4, 0)]),
    "every other hour fires in both that have its number": (
        "0 */2 * * *", AUTUMN, [berlin(*AUTUMN, 2, 0), berlin(*AUTUMN, 2, 0, fold=1), berlin(*AUTUMN, 4, 0)]),
    "a fixed time outside the jump keeps to the wall clock": (
        "0 6 * * *", AUTUMN, [berlin(*AUTUMN, 6, 0), berlin(2027, 11, 1, 6, 0)]),
}  # fmt: skip


@pytest.mark.parametrize("night", NIGHTS)
def test_cron_on_the_nights_when_clocks_change(queue: Queue, clock: Clock, night: str) -> None:
    cron, day, expected = NIGHTS[night]
    start = clock.freeze(berlin(*day, 0, 0))
    queue.run(schedules.add("nightly", "report", cron=cron, timezone="Europe/Berlin"))
    instants: list[datetime] = []
    while len(instants) < len(expected):
        now = clock.advance(600)
        assert now < start + timedelta(days=2), instants
        instants += [instant for _, instant in fired(queue)]
        assert instants[-1:] <= [now]
    assert instants == expected
    assert keys(queue) == [f"schedule:nightly:{instant:%Y-%m-%dT%H:%M:%SZ}" for instant in expected]


def test_a_look_in_the_second_of_the_two_hours_does_not_fire_the_first_again() -> None:
    for minute in range(60):
        within = berlin(*AUTUMN, 2, minute, fold=1)
        assert schedules.cron_after("30 2 * * *", "Europe/Berlin", within) == berlin(2027, 11, 1, 2, 30)
        assert schedules.cron_after("30 2 31 10 *", "Europe/Berlin", within) == berlin(2028, 10, 31, 2, 30)


def test_the_29th_of_february_comes_in_leap_years_only(queue: Queue, clock: Clock) -> None:
    queue.run(schedules.add("leap", "report", cron="0 12 29 2 *"))
    instants = []
    for _ in range(3):
        leap = queue.run(schedules.get("leap"))
        clock.freeze(leap.next_at)
        instants += [instant for _, instant in fired(queue)]
    assert instants == [datetime(year, 2, 29, 12, tzinfo=UTC) for year in (2028, 2032, 2036)]
    assert schedules.cron_after("0 0 L 2 *", "UTC", datetime(2028, 2, 1, tzinfo=UTC)) == datetime(
        2028, 2, 29, tzinfo=UTC
    )


def test_an_interval_is_as_long_on_the_nights_when_clocks_change(queue: Queue, clock: Clock) -> None:
    for day in (SPRING, AUTUMN):
        start = clock.freeze(berlin(*day, 0, 0))
        queue.run(schedules.add("tick", "report", every=3600, at=datetime(*day, tzinfo=BERLIN)))
        for hour in range(1, 6):
            clock.freeze(start + timedelta(hours=hour, minutes=20))
            assert fired(queue) == [("tick", start + timedelta(hours=hour))]
        queue.run(schedules.remove("tick"))


def test_an_interval_keeps_its_beat_however_late_it_fires() -> None:
    timing = Timing(None, 600.0, None, "UTC")
    assert timing.first(NEW_YEAR) == NEW_YEAR + timedelta(seconds=600)
    for late, following in ((0, 600), (599, 600), (600, 1200), (601, 1200), (86_400 * 3 + 1, 86_400 * 3 + 600)):
        now = NEW_YEAR + timedelta(seconds=late)
        assert timing.following(NEW_YEAR, now) == NEW_YEAR + timedelta(seconds=following), late
    anchored = Timing(None, 600.0, NEW_YEAR, "UTC")
    assert anchored.first(NEW_YEAR - timedelta(days=1)) == NEW_YEAR
    assert anchored.first(NEW_YEAR + timedelta(seconds=700)) == NEW_YEAR + timedelta(seconds=1200)


# -- what is made up, and what is dropped -----------------------------------------------------------------------


def test_what_three_days_of_standstill_missed_is_made_up_once(queue: Queue, clock: Clock) -> None:
    hour = timedelta(hours=1)
    queue.run(schedules.add("hourly", "report", cron="0 * * * *"))
    queue.run(schedules.add("nightly", "report", cron="0 3 * * *"))
    queue.run(schedules.add("tick", "report", every=3600))
    queue.run(schedules.add("once", "report", at=NEW_YEAR + hour))
    clock.advance(timedelta(days=3, minutes=20))
    assert sorted(fired(queue)) == [
        ("hourly", NEW_YEAR + hour), ("nightly", NEW_YEAR + 3 * hour),
        ("once", NEW_YEAR + hour), ("tick", NEW_YEAR + hour),
    ]  # fmt: skip
    assert fired(queue) == []
    day = NEW_YEAR + timedelta(days=3)
    planned = {schedule.name: schedule.next_at for schedule in queue.run(schedules.list_schedules())}
    assert planned == {"hourly": day + hour, "nightly": day + 3 * hour, "once": None, "tick": day + hour}
    (job,) = [job for job in queue.list_jobs() if job.metadata["schedule"] == "nightly"]
    assert job.metadata == {"schedule": "nightly", "scheduled_at": "2027-01-01T03:00:00Z"}
    assert (job.run_at, job.created_at) == (clock.now(), clock.now())


def test_a_clock_that_is_set_back_fires_nothing_again(queue: Queue, clock: Clock) -> None:
    queue.run(schedules.add("hourly", "report", cron="0 * * * *"))
    clock.advance(3600)
    assert len(fired(queue)) == 1
    clock.freeze(NEW_YEAR)
    assert fired(queue) == []
    clock.advance(3600)
    assert fired(queue) == []


def test_what_falls_into_a_pause_is_dropped(queue: Queue, clock: Clock) -> None:
    queue.run(schedules.add("hourly", "report", cron="0 * * * *"))
    queue.run(schedules.add("once", "report", at=NEW_YEAR + timedelta(hours=1)))
    queue.run(schedules.add("far", "report", at=NEW_YEAR + timedelta(days=9)))
    for name in ("hourly", "once", "far"):
        assert queue.run(schedules.pause(name))
        assert not queue.run(schedules.pause(name))
    clock.advance(timedelta(hours=2, minutes=30))
    assert fired(queue) == []
    assert {schedule.state for schedule in queue.run(schedules.list_schedules())} == {"paused"}
    for name in ("hourly", "once", "far"):
        assert queue.run(schedules.resume(name))
        assert not queue.run(schedules.resume(name))
    assert fired(queue) == []
    planned = {schedule.name: (schedule.state, schedule.next_at) for schedule in queue.run(schedules.list_schedules())}
    assert planned == {
        "hourly": ("active", NEW_YEAR + timedelta(hours=3)), "once": ("finished", None),
        "far": ("active", NEW_YEAR + timedelta(days=9)),
    }  # fmt: skip


@pytest.mark.parametrize("every", [None, 3600.0])
def test_a_schedule_whose_expiry_is_put_off_fires_when_it_was_to(
    queue: Queue, clock: Clock, every: float | None
) -> None:
    day = timedelta(days=1)
    too_early = queue.run(schedules.add("s", "report", every=every, at=NEW_YEAR + 2 * day, expires_at=NEW_YEAR + day))
    assert too_early.schedule.state == "finished"
    added = queue.run(schedules.add("s", "report", every=every, at=NEW_YEAR + 2 * day, expires_at=NEW_YEAR + 9 * day))
    assert (added.schedule.state, added.schedule.next_at) == ("active", NEW_YEAR + 2 * day)
    clock.freeze(NEW_YEAR + 2 * day)
    assert len(fired(queue)) == 1
    again = queue.run(schedules.add("s", "report", every=every, at=NEW_YEAR + 2 * day, expires_at=NEW_YEAR + 9 * day))
    assert again.schedule.next_at == (None if every is None else NEW_YEAR + 2 * day + timedelta(hours=1))


def test_max_runs_and_expires_at_end_a_schedule(queue: Queue, clock: Clock) -> None:
    end = NEW_YEAR + timedelta(hours=2)
    queue.run(schedules.add("twice", "report", every=3600, max_runs=2))
    queue.run(schedules.add("until two", "report", every=3600, expires_at=end))
    queue.run(schedules.add("missed", "report", at=NEW_YEAR + timedelta(minutes=90), expires_at=end))
    for _ in range(4):
        clock.advance(3600)
        fired(queue)
    runs = {schedule.name: (schedule.runs, schedule.state) for schedule in queue.run(schedules.list_schedules())}
    assert runs == {"twice": (2, "finished"), "until two": (1, "finished"), "missed": (0, "finished")}
    assert queue.run(schedules.next_due()) is None
    queue.run(schedules.add("twice", "report", every=3600, max_runs=3))  # one more
    assert queue.run(schedules.get("twice")).next_at == clock.now() + timedelta(hours=1)


# -- changing ---------------------------------------------------------------------------------------------------


def test_adding_again_changes_what_is_given_and_keeps_the_beat(queue: Queue, clock: Clock) -> None:
    added = queue.run(schedules.add("tick", "report", {"a": 1}, every=timedelta(hours=1), queue="slow", priority=3))
    assert added.created
    assert (added.schedule.payload, added.schedule.queue, added.schedule.priority) == ({"a": 1}, "slow", 3)
    clock.advance(1800)  # an application that starts more often than its schedule fires must not put it off for ever
    again = queue.run(schedules.add("tick", "mail", every=3600.0, metadata={"team": "x"}, max_attempts=2))
    assert not again.created
    assert again.schedule.next_at == added.schedule.next_at
    clock.advance(timedelta(days=1))  # nor drop what was missed before it started
    queue.run(schedules.add("tick", "mail", every=3600, metadata={"team": "x"}, max_attempts=2))
    assert fired(queue) == [("tick", NEW_YEAR + timedelta(hours=1))]
    (job,) = queue.list_jobs()
    assert (job.kind, job.queue, job.payload, job.max_attempts) == ("mail", "default", None, 2)
    assert job.metadata["team"] == "x"
    queue.run(schedules.pause("tick"))
    changed = queue.run(schedules.add("tick", "mail", cron="0 0 * * *")).schedule
    assert (changed.every, changed.state, changed.runs) == (None, "paused", 1)
    assert changed.next_at == NEW_YEAR + timedelta(days=2)


def test_a_moment_that_has_fired_does_not_fire_again_when_it_is_added_again(queue: Queue, clock: Clock) -> None:
    moment = datetime(*AUTUMN, 2, 30, tzinfo=BERLIN, fold=1)  # Python finds it unequal to itself in any other zone
    clock.freeze(moment)
    for firings in (1, 0, 0):
        queue.run(schedules.add("once", "report", at=moment))
        assert len(fired(queue)) == firings
    queue.run(schedules.remove("once"))
    queue.run(schedules.add("once", "report", at=moment))
    assert fired(queue) == [("once", moment.astimezone(UTC))]  # the key remembers
    assert len(keys(queue)) == 1


def test_run_now_pushes_at_once_and_changes_nothing_of_the_plan(queue: Queue, clock: Clock) -> None:
    queue.run(schedules.add("nightly", "report", {"a": 1}, cron="0 3 * * *", max_runs=1))
    queue.run(schedules.pause("nightly"))
    before = queue.run(schedules.get("nightly"))
    first = queue.run(schedules.run_now("nightly"))
    assert first.created
    assert queue.run(schedules.run_now("nightly")) == (first.id, False)  # at the same instant of a frozen clock
    assert queue.run(schedules.get("nightly")) == before
    job = queue.get(first.id)
    assert (job.external_key, job.payload, job.run_at) == ("schedule:nightly:2027-01-01T00:00:00Z", {"a": 1}, NEW_YEAR)


def test_a_removed_schedule_fires_no_more_and_leaves_its_jobs(queue: Queue, clock: Clock) -> None:
    queue.run(schedules.add("tick", "report", every=60))
    clock.advance(60)
    fired(queue)
    queue.run(schedules.remove("tick"))
    clock.advance(60)
    assert fired(queue) == []
    assert len(keys(queue)) == 1


def test_what_does_not_exist_is_named(queue: Queue) -> None:
    for operation in (schedules.get, schedules.pause, schedules.resume, schedules.remove, schedules.run_now):
        with pytest.raises(ScheduleNotFound, match="there is no schedule 'nightly'"):
            queue.run(operation("nightly"))


def test_lists_come_in_pages_in_the_order_of_names(queue: Queue) -> None:
    for name in ("b", "a", "d", "c"):
        queue.run(schedules.add(name, "report", every=60))
    first = queue.run(schedules.list_schedules(limit=3))
    assert [schedule.name for schedule in first] == ["a", "b", "c"]
    assert [schedule.name for schedule in queue.run(schedules.list_schedules(after="c"))] == ["d"]


BAD: dict[str, dict[str, Any]] = {
    "give cron, or every, or at: when": {},
    "give cron, or every, or at; with": {"cron": "0 3 * * *", "every": 60},
    "with every, at is the first": {"cron": "0 3 * * *", "at": NEW_YEAR},
    "five fields": {"cron": "0 0 3 * * *"},
    "Bad hour": {"cron": "0 25 * * *"},
    "Bad day-of-month": {"cron": "0 0 30 2 *"},
    "time zone 'Europe' is not known": {"cron": "0 3 * * *", "timezone": "Europe"},
    "time zone 'Mars/Olympus' is not known": {"cron": "0 3 * * *", "timezone": "Mars/Olympus"},
    "time zone '../etc/passwd' is not known": {"cron": "0 3 * * *", "timezone": "../etc/passwd"},
    "timezone belongs to cron": {"every": 60, "timezone": "Europe/Berlin"},
    "at least 1 second": {"every": 0.5},
    "every must be 0 to": {"every": float("nan")},
    "at must be a datetime with a time zone": {"at": datetime(2027, 1, 1)},  # noqa: DTZ001 - what is refused
    "max_runs must be": {"every": 60, "max_runs": 0},
    "expires_at must be": {"every": 60, "expires_at": "soon"},
    "cron must be a text": {"cron": "0 3 * * *\0"},
    "metadata must be": {"every": 60, "metadata": []},
    "queue must be": {"every": 60, "queue": ""},
}  # fmt: skip


@pytest.mark.parametrize("message", BAD)
def test_a_bad_schedule_is_refused_before_anything_is_sent(message: str) -> None:
    with pytest.raises(InvalidJob, match=message.replace(".", r"\.")):
        next(schedules.add("bad", "report", **BAD[message]))


def test_a_missing_table_is_told_with_the_command_that_makes_it(database: str) -> None:
    with Queue.connect(database) as queue, pytest.raises(SchemaMissing, match="pgqueue-ref migrate"):
        queue.run(schedules.list_schedules())


# -- once, whoever fires -----------------------------------------------------------------------------------------


def test_ten_workers_fire_it_once_also_while_the_first_still_waits(queue: Queue, clock: Clock, dsn: str) -> None:
    queue.run(schedules.add("nightly", "report", cron="0 3 * * *"))
    clock.freeze(NEW_YEAR + timedelta(hours=3))
    with psycopg.connect(dsn) as rival, ThreadPoolExecutor(10) as workers:
        # A transaction that holds the firing's key, so that whoever fires first waits for it in the middle.
        rival.execute(
            "INSERT INTO pgqueue_jobs (kind, external_key) VALUES ('report', 'schedule:nightly:2027-01-01T03:00:00Z')"
        )
        holder = rival.info.backend_pid

        def worker() -> list[tuple[str, datetime]]:
            with Queue.connect(dsn) as mine:
                return fired(mine)

        futures = [workers.submit(worker) for _ in range(10)]
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE %s = ANY (pg_blocking_pids(pid))"
        until(lambda: queue.connection.execute(waiting, [holder]).fetchone() == (1,), "one worker waits for the rival")
        until(lambda: sum(future.done() for future in futures) == 9, "the nine others find nothing to fire")
        rival.rollback()
        answers = [future.result() for future in futures]
    assert max(answers, key=len) == [("nightly", NEW_YEAR + timedelta(hours=3))]
    assert sum(map(len, answers)) == 1
    assert len(keys(queue)) == 1
    assert queue.run(schedules.get("nightly")).runs == 1


def test_a_firing_whose_key_was_pushed_meanwhile_counts_and_pushes_nothing(
    queue: Queue, clock: Clock, dsn: str
) -> None:
    queue.run(schedules.add("nightly", "report", cron="0 3 * * *"))
    clock.freeze(NEW_YEAR + timedelta(hours=3))
    queue.push("report", key="schedule:nightly:2027-01-01T03:00:00Z")
    assert len(fired(queue)) == 1
    assert len(keys(queue)) == 1
    assert queue.run(schedules.get("nightly")).next_at == NEW_YEAR + timedelta(hours=27)


def steps(queue: Queue, operation: Any) -> tuple[Any, Callable[[Any], list[tuple[Any, ...]]]]:
    """The first statement of an operation and its rows, and a way to run those that follow by hand."""

    def execute(statement: Any) -> list[tuple[Any, ...]]:
        rows: list[tuple[Any, ...]] = queue.connection.execute(statement.sql, statement.params).fetchall()
        return rows

    return next(operation), execute


def test_what_changed_between_the_look_and_the_firing_is_left_alone(queue: Queue, clock: Clock) -> None:
    changes = {
        "fired by another worker": lambda: queue.run(schedules.fire()),
        "paused": lambda: queue.run(schedules.pause("tick")),
        "removed": lambda: queue.run(schedules.remove("tick")),
        "planned otherwise": lambda: queue.run(schedules.add("tick", "report", every=60, at=clock.now())),
        "changed by hand": lambda: queue.connection.execute("UPDATE pgqueue_schedules SET kind = 'other'"),
    }
    for change in changes.values():
        queue.run(schedules.add("tick", "report", every=60))
        queue.connection.execute("UPDATE pgqueue_schedules SET next_at = now(), paused_at = NULL")
        operation = schedules.fire()
        look, execute = steps(queue, operation)
        shoot = operation.send(execute(look))
        change()
        before = keys(queue), queue.run(schedules.list_schedules())
        assert execute(shoot) == []
        assert (keys(queue), queue.run(schedules.list_schedules())) == before
        queue.connection.execute("TRUNCATE pgqueue_jobs, pgqueue_schedules")


def test_a_firing_that_is_sent_again_after_a_lost_answer_does_nothing(queue: Queue, clock: Clock) -> None:
    queue.run(schedules.add("tick", "report", every=60))
    clock.advance(60)
    operation = schedules.fire()
    look, execute = steps(queue, operation)
    shoot = operation.send(execute(look))
    assert len(execute(shoot)) == 1
    assert execute(shoot) == []
    assert len(keys(queue)) == 1


def test_a_firing_belongs_to_the_callers_transaction(queue: Queue, clock: Clock) -> None:
    queue.run(schedules.add("tick", "report", every=60))
    clock.advance(60)
    with queue.connection.transaction(force_rollback=True):
        assert len(fired(queue)) == 1
    assert keys(queue) == []
    assert len(fired(queue)) == 1


def test_two_who_add_the_same_name_take_turns(queue: Queue, clock: Clock, dsn: str) -> None:
    with psycopg.connect(dsn) as rival, ThreadPoolExecutor(1) as threads:
        Queue(rival).run(schedules.add("tick", "first", every=60))
        second = threads.submit(queue.run, schedules.add("tick", "second", every=60))
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE %s = ANY (pg_blocking_pids(pid))"
        with psycopg.connect(dsn, autocommit=True) as db:
            until(lambda: db.execute(waiting, [rival.info.backend_pid]).fetchone() == (1,), "the second waits")
        rival.commit()
        assert not second.result().created
    assert queue.run(schedules.get("tick")).kind == "second"


# -- what cannot be fired ----------------------------------------------------------------------------------------


def test_a_schedule_that_the_server_refuses_holds_up_no_other(queue: Queue, clock: Clock) -> None:
    for number in range(7):
        queue.run(schedules.add(f"tick {number}", "poison" if number == 3 else "report", every=60))
    queue.connection.execute("ALTER TABLE pgqueue_jobs ADD CONSTRAINT mine CHECK (kind <> 'poison')")
    clock.advance(60)
    done = queue.run(schedules.fire(limit=2))  # several batches
    assert sorted(name for name, _ in done.fired) == [f"tick {number}" for number in range(7) if number != 3]
    assert list(done.refused) == ["tick 3"]
    assert "mine" in done.refused["tick 3"]
    queue.connection.execute("ALTER TABLE pgqueue_jobs DROP CONSTRAINT mine")
    assert fired(queue) == [("tick 3", NEW_YEAR + timedelta(seconds=60))]


def test_in_an_open_transaction_a_refusal_is_raised(queue: Queue, clock: Clock) -> None:
    queue.run(schedules.add("tick", "poison", every=60))
    queue.connection.execute("ALTER TABLE pgqueue_jobs ADD CONSTRAINT mine CHECK (kind <> 'poison')")
    clock.advance(60)
    with pytest.raises(QueueError, match="mine"), queue.connection.transaction():
        queue.run(schedules.fire())


def test_a_time_zone_or_expression_that_is_unknown_here_holds_up_no_other(queue: Queue, clock: Clock) -> None:
    for name in ("a", "b", "c"):
        queue.run(schedules.add(name, "report", cron="* * * * *"))
    queue.connection.execute("UPDATE pgqueue_schedules SET timezone = 'Mars/Olympus' WHERE name = 'a'")
    queue.connection.execute("UPDATE pgqueue_schedules SET cron = 'at noon' WHERE name = 'b'")
    clock.advance(60)
    done = queue.run(schedules.fire())
    assert [name for name, _ in done.fired] == ["c"]
    assert "Mars/Olympus" in done.refused["a"]
    assert "at noon" in done.refused["b"]


def test_without_cronsim_cron_is_refused_with_what_to_install_and_the_rest_fires(
    queue: Queue, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue.run(schedules.add("nightly", "report", cron="0 3 * * *"))
    queue.run(schedules.add("tick", "report", every=60))
    clock.advance(timedelta(days=1))
    monkeypatch.setitem(sys.modules, "cronsim", None)
    with pytest.raises(InvalidJob, match=r"install pgqueue-ref\[schedules\]"):
        queue.run(schedules.add("other", "report", cron="0 3 * * *"))
    done = queue.run(schedules.fire())
    assert [name for name, _ in done.fired] == ["tick"]
    assert done.refused == {"nightly": "cron schedules need cronsim: install pgqueue-ref[schedules]"}


# -- in the worker -----------------------------------------------------------------------------------------------


@pytest.fixture
def kinds() -> Kinds:
    kinds = Kinds()
    kinds.register("report")(lambda job: None)
    return kinds


def test_workers_fire_what_is_due_and_run_it_once(queue: Queue, clock: Clock, dsn: str, kinds: Kinds) -> None:
    queue.run(schedules.add("nightly", "report", cron="0 3 * * *"))

    async def night() -> None:
        async with contextlib.AsyncExitStack() as stack:
            workers = [await stack.enter_async_context(Worker(kinds, dsn=dsn, poll_interval=0.05)) for _ in range(3)]
            clock.advance(timedelta(days=1))
            await eventually(lambda: sum(worker.counts.succeeded for worker in workers), "a worker ran it")
            await eventually(lambda: queue.run(schedules.get("nightly")).runs == 1, "it counts")
            assert sum(worker.counts.claimed for worker in workers) == 1

    asyncio.run(night())
    assert keys(queue) == ["schedule:nightly:2027-01-01T03:00:00Z"]


def test_a_worker_without_cronsim_says_so_once_before_anything_is_due(
    queue: Queue,
    clock: Clock,
    dsn: str,
    kinds: Kinds,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    queue.run(schedules.add("nightly", "report", cron="0 3 * * *"))
    monkeypatch.setitem(sys.modules, "cronsim", None)

    async def turns() -> None:
        worker = Worker(kinds, dsn=dsn)
        for _ in range(3):
            await worker.run_once()
        await worker.close()

    asyncio.run(turns())
    assert [record.message for record in caplog.records] == [
        "maintenance of schedules: nightly: cron schedules need cronsim: install pgqueue-ref[schedules]"
    ]


def test_a_worker_looks_again_when_the_next_one_is_due(queue: Queue, clock: Clock) -> None:
    assert queue.run(schedules.chore()) == (0, schedules.LOOK, {})
    queue.run(schedules.add("tick", "report", every=60))
    assert queue.run(schedules.chore()) == (0, schedules.LOOK, {})
    clock.advance(58)
    assert queue.run(schedules.chore()) == (0, 2.0, {})
    clock.advance(2)
    assert queue.run(schedules.chore()) == (1, schedules.LOOK, {})


# -- other runners, plans ----------------------------------------------------------------------------------------


def test_every_runner_runs_it(dsn: str, clock: Clock) -> None:
    from sqlalchemy import create_engine

    from pgqueue_ref.sqlalchemy import queue as sqlalchemy_queue

    async def on_psycopg() -> None:
        async with await AsyncQueue.connect(dsn) as queue:
            assert (await queue.run(schedules.add("a", "report", at=NEW_YEAR))).created
            assert len((await queue.run(schedules.fire())).fired) == 1

    asyncio.run(on_psycopg())
    engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(dsn))
    with engine.begin() as connection:
        queue = sqlalchemy_queue(connection)
        assert queue.run(schedules.add("b", "report", at=NEW_YEAR)).created
        assert len(queue.run(schedules.fire()).fired) == 1
        assert queue.run(schedules.next_due()) is None
    engine.dispose()


def test_a_look_for_what_is_due_reads_no_more_than_that(queue: Queue, clock: Clock) -> None:
    queue.connection.execute(
        """INSERT INTO pgqueue_schedules (name, kind, every, next_at)
           SELECT n, 'report', 60, now() + make_interval(secs => n) FROM generate_series(1, 20000) AS n"""
    )
    queue.connection.execute("ANALYZE pgqueue_schedules")
    clock.advance(5)
    operation = schedules.fire()
    for statement in (next(operation), next(schedules.next_due())):
        explain = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON, TIMING OFF) {statement.sql}"
        ((plan,),) = queue.connection.execute(explain, statement.params).fetchall()
        assert "pgqueue_schedules_due" in str(plan)
        assert plan[0]["Plan"]["Shared Hit Blocks"] + plan[0]["Plan"]["Shared Read Blocks"] < 100
    assert len(fired(queue)) == 5
