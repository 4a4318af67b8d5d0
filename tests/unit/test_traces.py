"""Traces: SWF and CSV are read alike, and a broken file costs one clear line."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from pgqueue_ref.harness import traces
from pgqueue_ref.harness.traces import Arrival, TraceError, load, scale, seconds, window, write_csv

HEADER = "; Version: 2.2\n; Computer: Intel iPSC/860\n; Acknowledge: Bill Nitzberg\n; Note: no waits\n"


def job(number: int, at: int, duration: int, processors: int) -> str:
    return f"{number:5} {at:8} -1 {duration} {processors} " + " ".join(["-1"] * 13) + "\n"


SWF = HEADER + job(1, 100, 50, 1) + job(2, 160, 7, 4) + job(3, 160, 9, 32) + job(4, 400, 1, 128)


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def complaint(path: Path) -> str:
    with pytest.raises(TraceError) as caught:
        load(path)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    return text


def test_swf_gives_submit_time_run_time_and_size_class(tmp_path: Path) -> None:
    trace = load(write(tmp_path / "log.swf", SWF))
    assert trace.arrivals == (
        Arrival(0, 50, "serial"),
        Arrival(60, 7, "small"),
        Arrival(60, 9, "medium"),
        Arrival(300, 1, "large"),
    )
    assert "Acknowledge: Bill Nitzberg" in trace.credits
    assert trace.span == 300


def test_swf_jobs_without_a_run_time_are_counted_and_left_out(tmp_path: Path) -> None:
    trace = load(write(tmp_path / "log.swf", SWF + job(5, 500, -1, 4)))
    assert (len(trace.arrivals), trace.unusable) == (4, 1)


def test_gzip_is_recognised_by_content_and_gives_the_same_trace(tmp_path: Path) -> None:
    plain = load(write(tmp_path / "log.swf", SWF))
    zipped = load(write(tmp_path / "log.swf.gz", gzip.compress(SWF.encode())))
    assert zipped.arrivals == plain.arrivals


def test_a_file_without_a_telling_name_is_recognised_by_its_first_line(tmp_path: Path) -> None:
    assert len(load(write(tmp_path / "a", SWF)).arrivals) == 4
    assert len(load(write(tmp_path / "b", "at,duration,kind\n0,1,x\n")).arrivals) == 1


def test_csv_columns_may_come_in_any_order_with_others_between(tmp_path: Path) -> None:
    text = "# thanks to Ada\n# and Bob\nkind,user,duration,at\nmail,7,0.5,12\nmail,8,2.5,10\n"
    trace = load(write(tmp_path / "jobs.csv", text))
    assert trace.arrivals == (Arrival(0, 2.5, "mail"), Arrival(2, 0.5, "mail"))
    assert trace.credits == ("thanks to Ada", "and Bob")


def test_converting_and_reading_back_keeps_every_job(tmp_path: Path) -> None:
    source = write(tmp_path / "log.swf", SWF)
    target = tmp_path / "jobs.csv.gz"
    assert traces.main(["convert", str(source), str(target)]) == 0
    assert load(target).arrivals == load(source).arrivals
    assert load(target).credits == load(source).credits


def test_converting_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    trace = load(write(tmp_path / "log.swf", SWF))
    write_csv(trace, tmp_path / "a.csv.gz")
    write_csv(trace, tmp_path / "b.csv.gz")
    assert (tmp_path / "a.csv.gz").read_bytes() == (tmp_path / "b.csv.gz").read_bytes()


def test_the_shipped_log_is_whole_and_carries_its_acknowledgement() -> None:
    trace = load(traces.SHIPPED)
    assert len(trace.arrivals) == 18_239
    assert any("Bill Nitzberg" in line for line in trace.credits)
    assert any("Feitelson" in line for line in trace.credits)
    assert set(trace.kinds) == {"serial", "small", "medium", "large"}


def test_scaling_both_by_one_factor_keeps_the_offered_load(tmp_path: Path) -> None:
    trace = load(write(tmp_path / "log.swf", SWF))
    fast = scale(trace, speedup=100, duration_scale=0.01)
    assert fast.arrivals[-1] == Arrival(3.0, 0.01, "large")

    def load_of(t: traces.Trace) -> float:
        return sum(a.duration for a in t.arrivals) / t.span

    assert load_of(fast) == pytest.approx(load_of(trace))


def test_a_window_is_half_open_and_starts_at_zero(tmp_path: Path) -> None:
    trace = load(write(tmp_path / "log.swf", SWF))
    assert window(trace, 60, 300).arrivals == (Arrival(0, 7, "small"), Arrival(0, 9, "medium"))
    with pytest.raises(TraceError, match="no job between"):
        window(trace, 1000)


@pytest.mark.parametrize(("text", "value"), [("90", 90), ("15m", 900), ("1.5h", 5400), ("28d", 28 * 86400)])
def test_times_are_written_with_a_unit(text: str, value: float) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", "d", "-1d", "1y", "1e3", "nan"])
def test_a_time_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(TraceError, match="not a time"):
        seconds(text)


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf")])
def test_a_speedup_that_is_no_positive_number_is_refused(tmp_path: Path, factor: float) -> None:
    trace = load(write(tmp_path / "log.swf", SWF))
    with pytest.raises(TraceError, match="speedup"):
        scale(trace, speedup=factor, duration_scale=1)


def test_swf_cut_in_the_middle_of_a_line_names_the_line(tmp_path: Path) -> None:
    text = complaint(write(tmp_path / "log.swf", SWF[:-20]))
    assert "line 8" in text
    assert "18" in text


def test_swf_cut_in_the_middle_of_a_number_names_the_field(tmp_path: Path) -> None:
    text = complaint(write(tmp_path / "log.swf", SWF[:-2]))
    assert "line 8" in text
    assert "field 18" in text


def test_gzip_cut_off_says_so(tmp_path: Path) -> None:
    whole = gzip.compress(SWF.encode())
    assert "cut off" in complaint(write(tmp_path / "log.swf.gz", whole[: len(whole) // 2]))


def test_damaged_gzip_says_so(tmp_path: Path) -> None:
    whole = bytearray(gzip.compress(SWF.encode()))
    whole[20:30] = b"\xff" * 10
    assert "damaged" in complaint(write(tmp_path / "log.swf.gz", bytes(whole)))


def test_a_gz_name_on_plain_text_says_so(tmp_path: Path) -> None:
    assert "not gzip" in complaint(write(tmp_path / "log.swf.gz", SWF))


@pytest.mark.parametrize("name", ["log.swf", "jobs.csv", "log.swf.gz", "thing"])
def test_an_empty_file_says_so(tmp_path: Path, name: str) -> None:
    assert "empty" in complaint(write(tmp_path / name, b""))


def test_a_csv_without_its_columns_names_those_missing(tmp_path: Path) -> None:
    text = complaint(write(tmp_path / "jobs.csv", "time,kind\n0,x\n"))
    assert "no column at, duration" in text
    assert "line 1" in text


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("1,x,a", "duration is 'x'"),
        ("-1,1,a", "at is '-1'"),
        ("nan,1,a", "at is 'nan'"),
        ("1,inf,a", "duration is 'inf'"),
        ("1,1,", "kind is ''"),
        ("1,1", "2 values under 3 columns"),
        ("1,1,a b", "kind is 'a b'"),
        ('1,1,"a', "not CSV"),
    ],
)
def test_a_bad_csv_row_names_line_and_fault(tmp_path: Path, row: str, says: str) -> None:
    text = complaint(write(tmp_path / "jobs.csv", f"# c\nat,duration,kind\n0,1,a\n{row}\n"))
    assert says in text
    assert "line 4" in text or "line 5" in text  # an open quote is found at the end of the file


def test_a_header_alone_has_no_job(tmp_path: Path) -> None:
    assert "no usable job" in complaint(write(tmp_path / "jobs.csv", "at,duration,kind\n"))


def test_a_binary_file_says_it_is_not_text(tmp_path: Path) -> None:
    assert "not UTF-8" in complaint(write(tmp_path / "jobs.csv", b"at,duration,kind\n0,1,\xff\xfe\n"))


def test_a_missing_file_and_a_directory_say_so(tmp_path: Path) -> None:
    assert "cannot be read" in complaint(tmp_path / "nothing.csv")
    assert "cannot be read" in complaint(tmp_path)


def test_the_converter_prints_one_line_exits_2_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "log.swf", SWF[:-20])
    target = tmp_path / "out.csv"
    assert traces.main(["convert", str(source), str(target)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert list(tmp_path.iterdir()) == [source]


def test_the_converter_leaves_an_old_file_whole_when_the_new_one_fails(tmp_path: Path) -> None:
    target = write(tmp_path / "out.csv", "at,duration,kind\n0,1,a\n")
    before = target.read_bytes()
    assert traces.main(["convert", str(write(tmp_path / "bad.csv", "x\n1\n")), str(target)]) == 2
    assert target.read_bytes() == before
