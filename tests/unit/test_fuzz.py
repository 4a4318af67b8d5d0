"""Whatever is in a file, a DSN or a cron expression: it is understood, or refused in one line by its own error."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict

from pgqueue_ref.core import InvalidJob, QueueError, conninfo
from pgqueue_ref.extensions.schedules import cron_after
from pgqueue_ref.harness import server
from pgqueue_ref.harness.server import ProvisionError, provision
from pgqueue_ref.harness.traces import TraceError, load, write_csv

quickly = settings(max_examples=200, deadline=None)
SECRET = "hunter2-tops3cret"


@pytest.fixture(scope="module", autouse=True)
def _no_settings() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("PGQUEUE_DATABASE_URL", "PGQUEUE_SCHEMA", "PGQUEUE_STATEMENT_TIMEOUT_MS"):
            patch.delenv(name, raising=False)
        yield


# -- Traces: lines that are nearly right, and bytes that are not -------------------------------------------------

numbers = st.one_of(
    st.integers(-2, 10**6).map(str), st.floats().map(repr), st.sampled_from(["", "-1", "1e999", "٣", "x"])
)
swf_line = st.one_of(
    st.lists(numbers, min_size=17, max_size=19).map(" ".join), st.just("; Computer: x"), st.text(max_size=20)
)
csv_line = st.one_of(
    st.tuples(numbers, numbers, st.text(max_size=5)).map(",".join), st.just("at,duration,kind"), st.text(max_size=20)
)
contents = st.one_of(
    st.lists(swf_line, max_size=5).map("\n".join).map(lambda text: text.encode(errors="surrogatepass")),
    st.lists(csv_line, max_size=5)
    .map(lambda lines: "\n".join(["at,duration,kind", *lines]))
    .map(lambda text: text.encode(errors="surrogatepass")),
    st.binary(max_size=60),
    st.binary(max_size=60).map(lambda data: gzip.compress(b"at,duration,kind\n1,1,a\n")[:30] + data),
)


@quickly
@given(contents, st.sampled_from(["log.swf", "jobs.csv", "jobs.csv.gz", "log"]))
def test_any_file_is_a_trace_or_a_trace_error(tmp_path_factory: pytest.TempPathFactory, data: bytes, name: str) -> None:
    file = tmp_path_factory.getbasetemp() / name
    file.write_bytes(data)
    try:
        trace = load(file)
    except TraceError as refused:
        said = str(refused)
        assert "\n" not in said
        assert str(file) in said
        return
    assert trace.arrivals[0].at == 0
    assert all(a.at <= b.at for a, b in zip(trace.arrivals, trace.arrivals[1:], strict=False))
    copy = Path(file.parent, "copy.csv")
    write_csv(trace, copy)
    assert [a.kind for a in load(copy).arrivals] == [a.kind for a in trace.arrivals]


# -- DSNs ------------------------------------------------------------------------------------------------------

words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
marks = st.text(":/?#@[]=&%' \\\n", max_size=4)
dsns = st.one_of(
    st.tuples(
        st.sampled_from(["postgresql://", "postgres+psycopg://", "mysql://", ""]), words, marks, marks, words
    ).map(lambda part: f"{part[0]}{part[1]}:{part[2]}{SECRET}{part[3]}@{part[4]}/db"),
    st.tuples(words, marks, marks, words).map(
        lambda part: f"host={part[0]} password={part[1]}{SECRET}{part[2]} {part[3]}"
    ),
    st.tuples(marks, marks).map(lambda part: f"{part[0]}{SECRET}{part[1]}"),
)


@quickly
@given(dsns)
@example(f"postgresql://u:{SECRET}@h/db\0")
def test_any_dsn_is_understood_or_refused_in_one_line_without_its_password(dsn: str) -> None:
    try:
        parts = conninfo_to_dict(conninfo(dsn))
    except QueueError as refused:
        said, chained = str(refused), not refused.__suppress_context__
        assert "\n" not in said
        assert SECRET not in said
        assert not chained
        return
    shown = {name: value for name, value in parts.items() if name != "password"}
    assert SECRET not in str(shown)  # what errors and reports name


@quickly
@given(dsns)
@example(f"postgresql://u:{SECRET}@h/db\0")
def test_any_server_that_is_asked_for_is_addressed_or_refused_without_its_password(dsn: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server.GivenServer, "_read_version", lambda _: None)  # nobody is called
        patch.setattr(server, "LaunchedServer", None)
        try:
            described = provision(dsn).describe() if server.is_dsn(dsn) else ""
        except ProvisionError as error:
            described = str(error)
    assert "\n" not in described
    assert SECRET not in described


# -- cron ------------------------------------------------------------------------------------------------------

field = st.one_of(
    st.sampled_from(["*", "*/2", "0", "1-5", "L", "MON", "FRI#2", "1,2", "60", "-1", "*/0", "5-1"]), st.text(max_size=5)
)
moments = st.datetimes(datetime(1971, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - made aware


@quickly
@given(
    st.lists(field, min_size=4, max_size=6).map(" ".join),
    st.one_of(st.sampled_from(["UTC", "Europe/Berlin", "Australia/Lord_Howe"]), st.text(max_size=8)),
    moments,
)
def test_any_cron_expression_gives_a_later_whole_minute_or_is_refused(cron: str, zone: str, after: datetime) -> None:
    try:
        found = cron_after(cron, zone, after)
    except InvalidJob as refused:
        said = str(refused)
        assert "\n" not in said
        return
    if found is not None:
        assert found > after
        assert found.second == found.microsecond == 0
