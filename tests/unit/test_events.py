"""The event log: what is written, by several at once, on disks that are full; what is read, and followed across rotations."""

import json
import logging
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blkrecov.cli import main
from blkrecov.cli.common import Options
from blkrecov.events import MESSAGE_IDS, Event, EventKind, EventLog
from blkrecov.settings import Settings
from blkrecov.watch import Watch

DONE = EventKind.RECOVERY_DONE


def happened(log: EventLog, *numbers: int, array: str = "lab") -> None:
    for number in numbers:
        log.tell(EventKind.RECOVERY_PROGRESS, f"event {number}", array=array, percent=number)


def numbers(events: tuple[Event, ...] | list[Event]) -> list[int | None]:
    return [event.percent for event in events]


class Script:
    """A pause that lets something happen each time, and says in the end that it is enough."""

    def __init__(self, *acts: Callable[[], None]) -> None:
        self._acts = iter(acts)

    def __call__(self, seconds: float) -> bool:
        act = next(self._acts, None)
        if act is None:
            return True
        act()
        return False


@pytest.fixture
def log(tmp_path: Path) -> EventLog:
    return EventLog(tmp_path / "state")


# Writing.


def test_an_event_is_one_line_of_json_with_all_its_facts(log: EventLog) -> None:
    """Programs read the file too; what an event has not is null."""
    log.append(Event(time=1700000000.25, kind=DONE, array="lab", message="LUN data is whole", lun="data", task=7))
    assert [json.loads(line) for line in log.path.read_text().splitlines()] == [
        {
            "time": 1700000000.25,
            "kind": "recovery_done",
            "array": "lab",
            "message": "LUN data is whole",
            "lun": "data",
            "drive": None,
            "task": 7,
            "percent": None,
            "code": None,
            "remedy": "",
            "data": None,
        }
    ]


def test_what_was_told_is_read(log: EventLog) -> None:
    """With the time at which it happened."""
    told = log.tell(EventKind.DRIVE_FAILED, "drive d1 has failed", array="lab", drive="d1", remedy="replace it")
    assert log.read() == (told,)
    assert told.time > 1.7e9


def test_the_file_is_root_s(log: EventLog) -> None:
    """Names of drives and LUNs are nobody else's business."""
    happened(log, 1)
    assert log.path.stat().st_mode & 0o777 == 0o600
    assert log.path.parent.stat().st_mode & 0o777 == 0o700


@given(message=st.text(), lun=st.none() | st.text(), percent=st.none() | st.integers(0, 100))
def test_any_text_is_one_line(
    tmp_path_factory: pytest.TempPathFactory, message: str, lun: str | None, percent: int
) -> None:
    """Newlines and quotes included."""
    log = EventLog(tmp_path_factory.mktemp("state"))
    told = log.tell(DONE, message, array="lab", lun=lun, percent=percent)
    happened(log, 1)
    assert log.read()[0] == told


def test_a_path_that_is_no_utf_8_is_written_readably(log: EventLog) -> None:
    """Linux takes any bytes for a file's name."""
    log.tell(DONE, f"not found at {os.fsdecode(b'/srv/d' + bytes([255]))}", array="lab")
    assert log.read()[0].message == "not found at /srv/d\\udcff"


def test_each_event_is_given_to_logging_with_its_facts(log: EventLog, caplog: pytest.LogCaptureFixture) -> None:
    """The journal's handler takes them from there. Trouble is a warning."""
    caplog.set_level(logging.INFO, "blkrecov.events")
    log.tell(EventKind.MEMBER_FAILED, "LUN data lost member 0", array="lab", lun="data", drive="d1")
    log.tell(DONE, "LUN data is whole", array="lab", lun="data", task=7, percent=100, code="S_OK")
    first, second = caplog.records
    assert (first.levelname, first.getMessage()) == ("WARNING", "LUN data lost member 0")
    assert (second.levelname, second.getMessage()) == ("INFO", "LUN data is whole")
    facts = {name: value for name, value in vars(second).items() if name.startswith("blkrecov_")}
    assert facts == {
        "blkrecov_kind": "recovery_done",
        "blkrecov_array": "lab",
        "blkrecov_lun": "data",
        "blkrecov_task": 7,
        "blkrecov_percent": 100,
        "blkrecov_code": "S_OK",
    }
    assert vars(second)["message_id"] == MESSAGE_IDS[DONE]


def test_a_log_that_cannot_be_written_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A recovery must not end because the disk that holds its story is full. It is said once, until it works again."""
    place = tmp_path / "state"
    place.write_text("a file where the directory should be")
    log = EventLog(place)
    happened(log, 1, 2)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1
    assert told[0].startswith(f"{log.path} cannot be written: ")
    place.unlink()
    happened(log, 3)
    assert numbers(log.read()) == [3]


def test_a_disk_that_is_full_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Every write to this file ends with ENOSPC."""
    log = EventLog(tmp_path)
    log.path.symlink_to("/dev/full")
    happened(log, 1, 2)
    assert [record.getMessage() for record in caplog.records] == [
        f"{log.path} cannot be written: No space left on device"
    ]


def test_half_a_line_spoils_no_other(log: EventLog) -> None:
    """A power cut, or a disk that was full for a while, leaves one."""
    happened(log, 1)
    with log.path.open("ab") as file:
        file.write(b'{"time": 17000')
    happened(log, 2)
    assert numbers(log.read()) == [1, 2]


def write_many(state: Path, first: int, count: int) -> None:
    happened(EventLog(state, rotate_at=25_000), *range(first, first + count))


def test_several_processes_write_and_lose_nothing(tmp_path: Path) -> None:
    """Each line whole, each once, those of one process in its order; also while the file is moved away under them."""
    count, processes = 60, 4
    spawning = multiprocessing.get_context("spawn")
    writers = [
        spawning.Process(target=write_many, args=(tmp_path, 1000 * number, count)) for number in range(processes)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    found = numbers(EventLog(tmp_path).read())
    assert EventLog(tmp_path).older.exists()
    for number in range(processes):
        mine = [value for value in found if value is not None and value // 1000 == number]
        assert mine == [1000 * number + step for step in range(count)]


# Rotation.


def test_the_file_is_moved_away_when_it_is_large(tmp_path: Path) -> None:
    """One older file is kept: the log has a bound."""
    log = EventLog(tmp_path, rotate_at=2000)
    happened(log, *range(100))
    assert sorted(path.name for path in tmp_path.iterdir()) in (
        ["events.jsonl", "events.jsonl.1"],
        ["events.jsonl.1"],
    )
    assert 2000 <= log.older.stat().st_size < 2300
    found = numbers(log.read())
    assert found == list(range(100))[-len(found) :]
    assert len(found) >= 10


# Reading.


def test_there_is_nothing_before_the_first_event(log: EventLog) -> None:
    """No directory, no file, no error."""
    assert log.read() == ()


@pytest.mark.parametrize(("last", "found"), [(None, [1, 2, 3]), (0, []), (2, [2, 3]), (9, [1, 2, 3])])
def test_the_last_events_are_the_newest(log: EventLog, last: int | None, found: list[int]) -> None:
    """In the order in which they happened."""
    happened(log, 1, 2, 3)
    assert numbers(log.read(last)) == found


def test_one_array_s_events_are_told_from_another_s(log: EventLog) -> None:
    """The last two of that array, however many others came after."""
    happened(log, 1, 2, 3)
    happened(log, 7, 8, 9, array="other")
    assert numbers(log.read(2, array="lab")) == [2, 3]


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"null",
        b"\xff\xfe",
        b'{"time": 1, "kind": "something_later", "array": "lab", "message": ""}',
        b"\0" * 99,
    ],
)
def test_a_line_that_is_no_event_is_passed_over(log: EventLog, line: bytes) -> None:
    """Of a later version's kind, or damaged by a power cut."""
    happened(log, 1)
    with log.path.open("ab") as file:
        file.write(line + b"\n")
    happened(log, 2)
    assert numbers(log.read()) == [1, 2]
    assert numbers(list(log.follow(9, pause=Script()))) == [1, 2]


# Following.


def test_following_begins_with_the_last_events(log: EventLog) -> None:
    """As many as asked for, of both files; with none asked for only what is new."""
    small = EventLog(log.path.parent, rotate_at=500)
    happened(small, 1, 2, 3, 4, 5)
    assert small.older.exists()
    assert numbers(list(log.follow(3, pause=Script()))) == [3, 4, 5]
    assert list(log.follow(pause=Script())) == []


def test_following_goes_on_after_an_event(log: EventLog) -> None:
    """Of both files; from the oldest where that one has gone with an older file."""
    small = EventLog(log.path.parent, rotate_at=500)
    happened(small, 1, 2, 3, 4)
    third = log.read()[2]
    happened(small, 5)
    assert small.older.exists()
    script = Script(partial(happened, log, 6))
    assert numbers(list(log.follow(after=third, pause=script))) == [4, 5, 6]
    gone = msgspec.structs.replace(third, time=0.0)
    assert numbers(list(log.follow(after=gone, pause=Script()))) == numbers(log.read())


def test_new_events_are_followed_as_they_come(log: EventLog) -> None:
    """From before the first one on: nobody has to wait for the file."""
    script = Script(lambda: happened(log, 1), lambda: None, lambda: happened(log, 2, 3))
    assert numbers(list(log.follow(pause=script))) == [1, 2, 3]


def test_half_a_line_is_waited_for(log: EventLog) -> None:
    """Whoever reads while another writes sees whole events only."""
    happened(log, 1)
    whole = log.path.read_bytes()

    def write(part: bytes) -> Callable[[], None]:
        def act() -> None:
            with log.path.open("ab") as file:
                file.write(part)

        return act

    script = Script(write(whole[:30]), lambda: None, write(whole[30:]))
    assert numbers(list(log.follow(pause=script))) == [1]


@pytest.mark.parametrize(("rotate_at", "at_once"), [(1, 1), (300, 1), (300, 3), (500, 3), (500, 5), (800, 4), (800, 7)])
def test_nothing_is_missed_across_rotations(tmp_path: Path, rotate_at: int, at_once: int) -> None:
    """Nor where the log is moved away twice between two looks; what was moved away after that is gone for everybody."""
    log = EventLog(tmp_path, rotate_at=rotate_at)
    acts = [partial(happened, log, *range(first, first + at_once)) for first in range(0, 10 * at_once, at_once)]
    assert numbers(list(log.follow(pause=Script(*acts)))) == list(range(10 * at_once))


def test_a_log_that_was_deleted_is_followed_on(log: EventLog) -> None:
    """By an operator; what was moved away before is not told a second time."""
    happened(EventLog(log.path.parent, rotate_at=1), 1)
    os.utime(log.older, (1, 1))
    happened(log, 2)
    script = Script(log.path.unlink, lambda: None, partial(happened, log, 3))
    assert numbers(list(log.follow(9, pause=script))) == [1, 2, 3]


def test_following_ends_when_the_pause_says_so(log: EventLog) -> None:
    """threading.Event().wait answers true when it is set."""
    happened(log, 1)
    asked: list[float] = []

    def enough(seconds: float) -> bool:
        asked.append(seconds)
        return True

    assert numbers(list(log.follow(5, pause=enough))) == [1]
    assert asked == [0.5]


def test_a_follower_leaves_nothing_open(log: EventLog) -> None:
    """Also one that is given up in the middle."""
    happened(log, 1, 2)
    before = len(list(Path("/proc/self/fd").iterdir()))
    following: Iterator[Event] = log.follow(2, pause=Script())
    assert next(following).percent == 1
    del following
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_the_log_lies_in_the_state_directory(tmp_path: Path) -> None:
    """Where Settings says."""
    assert EventLog(Settings(state=tmp_path).state).path == tmp_path / "events.jsonl"


# The command line.


@dataclass
class Shown:
    status: int
    out: str
    err: str


@pytest.fixture
def blkrecov(log: EventLog, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[str], Shown]]:
    """`blkrecov events` with these words, over the log."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BLKRECOV_STATE", str(log.path.parent))
        patch.setenv("TZ", "UTC")
        time.tzset()

        def run(words: str) -> Shown:
            patch.setattr("sys.argv", ["blkrecov", "events", *words.split()])
            status = main.run(Options(json="--json" in words))
            return Shown(status, *capsys.readouterr())

        yield run
    time.tzset()


def test_events_are_shown_to_people(log: EventLog, blkrecov: Callable[[str], Shown]) -> None:
    """When, where, what, and what to do about it."""
    failed, done = EventKind.DRIVE_FAILED, EventKind.RECOVERY_DONE
    log.append(Event(time=1700000000.9, kind=failed, array="lab", message="drive d1 has failed", remedy="replace it"))
    log.append(Event(time=1700000001, kind=done, array="lab", message="LUN data is whole"))
    assert blkrecov("") == Shown(
        0,
        "2023-11-14 22:13:20  lab  drive_failed: drive d1 has failed\n"
        "  what to do: replace it\n"
        "2023-11-14 22:13:21  lab  recovery_done: LUN data is whole\n",
        "",
    )


def test_events_are_shown_to_programs(log: EventLog, blkrecov: Callable[[str], Shown]) -> None:
    """An array, also of none; the keys are the file's."""
    assert json.loads(blkrecov("--json").out) == []
    happened(log, 1, 2, 3)
    lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert json.loads(blkrecov("--json").out) == lines
    assert json.loads(blkrecov("--json -n 2").out) == lines[1:]


def test_another_array_s_events_are_not_shown(log: EventLog, blkrecov: Callable[[str], Shown]) -> None:
    """To whoever asks for one."""
    happened(log, 1)
    happened(log, 2, array="other")
    assert [item["percent"] for item in json.loads(blkrecov("--json --array lab").out)] == [1]


def test_events_are_followed_until_somebody_has_enough(
    log: EventLog, blkrecov: Callable[[str], Shown], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last ten, then what comes, one object on each line. Ctrl-C ends it."""
    happened(log, *range(20))

    def wait(_watch: Watch, _output: int | None) -> None:
        if log.read(1)[0].percent == 20:
            raise KeyboardInterrupt
        happened(log, 20)

    monkeypatch.setattr(Watch, "wait", wait)
    shown = blkrecov("-f --json")
    assert [json.loads(line)["percent"] for line in shown.out.splitlines()] == list(range(10, 21))
    assert (shown.status, shown.err.strip()) == (130, "interrupted")


@contextmanager
def following(log: EventLog, output: int) -> Iterator[subprocess.Popen[bytes]]:
    """`blkrecov events -f` as a process, which has shown what there was."""
    environment = {**os.environ, "BLKRECOV_STATE": str(log.path.parent)}
    command = [sys.executable, "-m", "blkrecov.cli.main", "events", "--follow", "--json"]
    with subprocess.Popen(command, stdout=output, stderr=subprocess.PIPE, env=environment) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_follower_sleeps_until_something_happens(log: EventLog) -> None:
    """No look in between: the kernel wakes it for the event, and for nothing else."""
    happened(log, 1)
    reads, writes = os.pipe()
    with following(log, writes) as process, open(reads, "rb") as lines:
        os.close(writes)
        assert json.loads(lines.readline())["percent"] == 1
        status = Path(f"/proc/{process.pid}/status")
        while "State:\tS" not in status.read_text():
            time.sleep(0.01)
        before = slept(status)
        time.sleep(1.2)
        assert slept(status) == before
        (log.path.parent / "lock").write_text("another's business")
        happened(log, 2)
        assert json.loads(lines.readline())["percent"] == 2
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
        assert process.stderr is not None
        assert process.stderr.read().split() == [b"interrupted"]


def slept(status: Path) -> int:
    """How often a process has gone to sleep so far."""
    found = re.search(r"^voluntary_ctxt_switches:\s+(\d+)$", status.read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


def test_a_follower_ends_when_its_reader_does(log: EventLog) -> None:
    """At once, with no event to be told, and without a word."""
    happened(log, 1)
    reads, writes = os.pipe()
    with following(log, writes) as process:
        os.close(writes)
        assert b"percent" in os.read(reads, 4096)
        os.close(reads)
        assert process.wait(10) == 1
        assert process.stderr is not None
        assert process.stderr.read() == b""


def test_a_negative_number_of_events_is_no_number(blkrecov: Callable[[str], Shown]) -> None:
    """A mistake of usage, told as one."""
    assert blkrecov("-n -1").status == 2
