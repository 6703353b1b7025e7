"""What is given to the journal, byte for byte; who gives it; the catalog that explains each event."""

import logging
import os
import re
import resource
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blkrecov import bell, journal, systemd
from blkrecov.events import MESSAGE_IDS, EventKind, EventLog
from blkrecov.journal import JournalHandler, datagram

CATALOG = Path(__file__).resolve().parents[2] / "blkrecov/data/blkrecov.catalog"
ENTRY = re.compile(
    r"^-- ([0-9a-f]{32})\nSubject: (.+)\nDefined-By: blkrecov\nDocumentation: man:blkrecov\(8\)\n\n", re.M
)
# What the entries of a kind have beside these, its place in the code says: the task, the LUN or the drive that it is of.
ALWAYS = {"ARRAY"}
OF_TASKS = {"TASK", "PERCENT"}


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.settimeout(5)
        yield listener


@pytest.fixture
def log(listener: socket.socket) -> Iterator[logging.Logger]:
    """A logger whose records go to the listener."""
    handler = JournalHandler("blkrecovd", listener.getsockname())
    log = logging.getLogger("tests.journal")
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    yield log
    log.removeHandler(handler)


def entry(data: bytes) -> dict[str, str]:
    """A datagram read as the journal reads it."""
    found = {}
    while data:
        line, _, data = data.partition(b"\n")
        name, is_plain, value = line.partition(b"=")
        if not is_plain:
            (length,) = struct.unpack("<Q", data[:8])
            value, data = data[8 : 8 + length], data[9 + length :]
        found[name.decode()] = value.decode()
    return found


def test_a_line_is_written_as_it_is() -> None:
    assert datagram({"MESSAGE": "it is well", "PRIORITY": 6}) == b"MESSAGE=it is well\nPRIORITY=6\n"


def test_a_value_of_several_lines_has_its_length_before_it() -> None:
    """Else its second line would be a field."""
    assert datagram({"MESSAGE": "a\nB=c"}) == b"MESSAGE\n\x05\0\0\0\0\0\0\0a\nB=c\n"


@given(st.dictionaries(st.from_regex(r"\A[A-Z][A-Z_]{0,9}\Z"), st.text()))
def test_any_text_is_read_as_it_was(fields: dict[str, str]) -> None:
    """But for what is no UTF-8, which shows as \\udcXX."""
    expected = {name: value.encode(errors="backslashreplace").decode() for name, value in fields.items()}
    assert entry(datagram(dict(fields))) == expected


def test_levels_are_priorities(log: logging.Logger, listener: socket.socket) -> None:
    """journalctl -p warning finds what an operator has to see."""
    found = []
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL):
        log.log(level, "%s of it", "all")
        found.append(entry(listener.recv(65536)))
    assert [each["PRIORITY"] for each in found] == ["7", "6", "4", "3", "2"]
    assert {(each["MESSAGE"], each["SYSLOG_IDENTIFIER"]) for each in found} == {("all of it", "blkrecovd")}


def test_an_exception_has_its_traceback(log: logging.Logger, listener: socket.socket) -> None:
    try:
        raise ValueError("unheard of")
    except ValueError:
        log.exception("array lab")
    assert re.fullmatch(r"array lab\nTraceback.*ValueError: unheard of", entry(listener.recv(65536))["MESSAGE"], re.S)


def test_what_is_far_too_long_is_cut(log: logging.Logger, listener: socket.socket) -> None:
    """A datagram that the kernel does not take would be lost as a whole."""
    log.info("x" * 10**6)
    assert len(entry(listener.recv(10**6))["MESSAGE"]) == 16 * 1024


def test_a_journal_that_hangs_is_not_waited_for_long(
    log: logging.Logger, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may lie on a LUN that is just being recovered, by us."""
    monkeypatch.setattr(journal, "PATIENCE_S", 0.05)
    for number in range(30):
        log.info("x" * 10000)
        log.info("number %d", number)
    assert entry(listener.recv(65536))["MESSAGE"].startswith("x")


def test_nothing_is_raised_where_no_descriptor_is_left(
    log: logging.Logger, listener: socket.socket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Who logs, tells systemd or rings a bell has other work to do, and an event loop ends with what its handler raises."""
    monkeypatch.setenv("NOTIFY_SOCKET", listener.getsockname())
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        log.info("lost")
        systemd.notify(READY="1")
        assert not bell.ring(tmp_path / "bell")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    log.info("there again")
    assert entry(listener.recv(65536))["MESSAGE"] == "there again"


def test_an_event_has_its_id_and_its_facts(listener: socket.socket, tmp_path: Path) -> None:
    handler = JournalHandler("blkrecov", listener.getsockname())
    events = logging.getLogger(journal.EVENTS)
    events.addHandler(handler)
    try:
        EventLog(tmp_path).tell(
            EventKind.RECOVERY_FAILED,
            "LUN data: there is no room",
            array="lab",
            lun="data",
            task=7,
            code="VDS_E_NOT_ENOUGH_SPACE",
            remedy="add a drive",
        )
    finally:
        events.removeHandler(handler)
    assert entry(listener.recv(65536)) == {
        "MESSAGE": "LUN data: there is no room",
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "blkrecov",
        "MESSAGE_ID": MESSAGE_IDS[EventKind.RECOVERY_FAILED],
        "BLKRECOV_KIND": "recovery_failed",
        "BLKRECOV_ARRAY": "lab",
        "BLKRECOV_LUN": "data",
        "BLKRECOV_TASK": "7",
        "BLKRECOV_CODE": "VDS_E_NOT_ENOUGH_SPACE",
        "BLKRECOV_REMEDY": "add a drive",
    }


def test_without_a_journal_nothing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A container has none."""
    JournalHandler("blkrecov", str(tmp_path / "none")).emit(
        logging.makeLogRecord({"msg": "it is well", "levelno": logging.INFO})
    )
    assert capsys.readouterr() == ("", "")


PROGRAM = """
import logging, sys
from pathlib import Path
from blkrecov import journal
from blkrecov.events import EventKind, EventLog

journal.log_as("blkrecovd", logging.INFO, sys.argv[1])
if sys.argv[3] == "service":
    journal.show_events()
logging.getLogger("blkrecov.daemon").warning("a warning")
EventLog(Path(sys.argv[2])).tell(EventKind.DRIVE_FAILED, "an event", array="lab", drive="d1")
"""


@pytest.mark.parametrize(
    ("role", "in_journal", "on_stderr", "native"),
    [
        ("service", True, "", ["a warning", "an event"]),
        ("service", False, "a warning\nan event\n", ["an event"]),
        ("command", True, "", ["a warning", "an event"]),
        ("command", False, "a warning\n", ["an event"]),
    ],
)
def test_everything_is_told_once(
    listener: socket.socket, tmp_path: Path, role: str, in_journal: bool, on_stderr: str, native: list[str]
) -> None:
    """What leads to the journal by itself is given to it natively only. A terminal shows events where they are waited for."""
    stderr = tmp_path / "stderr"
    with stderr.open("w") as file:
        found = os.fstat(file.fileno())
        stream = f"{found.st_dev}:{found.st_ino if in_journal else 0}"
        command = [sys.executable, "-c", PROGRAM, listener.getsockname(), str(tmp_path / "state"), role]
        subprocess.run(command, stderr=file, env={**os.environ, "JOURNAL_STREAM": stream}, check=True)
    assert stderr.read_text() == on_stderr
    assert [entry(listener.recv(65536))["MESSAGE"] for _ in native] == native
    listener.setblocking(False)
    with pytest.raises(BlockingIOError):
        listener.recv(65536)


# The catalog.


def test_every_kind_has_an_id_of_its_own() -> None:
    assert list(MESSAGE_IDS) == list(EventKind)
    assert len(set(MESSAGE_IDS.values())) == len(EventKind)
    assert all(re.fullmatch("[0-9a-f]{32}", number) for number in MESSAGE_IDS.values())


def test_every_id_has_an_entry_in_the_catalog_and_no_other_has() -> None:
    """Each begins with all of the head lines."""
    text = CATALOG.read_text()
    assert [match[1] for match in ENTRY.finditer(text)] == list(MESSAGE_IDS.values())
    assert text.count("\n-- ") == len(EventKind)


@pytest.mark.parametrize("kind", EventKind)
def test_an_entry_names_what_its_kind_has(kind: EventKind) -> None:
    """For a field that is not there journalctl shows the field's name. What to do is said last."""
    head, _, text = CATALOG.read_text().partition(f"-- {MESSAGE_IDS[kind]}\n")[2].partition("\n\n")
    text = text.partition("\n-- ")[0]
    noun, _, verb = kind.value.partition("_")
    allowed = ALWAYS | {
        "drive": {"DRIVE"},
        "fault": {"DRIVE"},
        "member": {"LUN", "DRIVE", "REMEDY"},
        "lun": {"LUN", "REMEDY"},
        "mounted": {"LUN"},
        "mount": {"LUN", "REMEDY"},
        "recovery": {"LUN", *OF_TASKS},
        "scrub": {"LUN", *OF_TASKS},
        "replacement": {"LUN", *OF_TASKS},
        "snapshot": OF_TASKS,
        "resync": OF_TASKS,
        "removal": OF_TASKS,
        "reconnect": OF_TASKS,
    }.get(noun, set())
    if verb == "failed":
        allowed |= {"CODE", "REMEDY"}
    if kind in (EventKind.REMOVAL_STARTED, EventKind.RECONNECT_STARTED):
        allowed |= {"DRIVE"}
    if kind in (EventKind.RECOVERY_IMPOSSIBLE, EventKind.SNAPSHOT_FILLING, EventKind.SNAPSHOT_LOST):
        allowed = ALWAYS | {"LUN", "REMEDY"}
    if kind is EventKind.RESYNC_VETOED:
        allowed = ALWAYS | {"REMEDY"}
    assert set(re.findall("@BLKRECOV_([A-Z]+)@", head + text)) <= allowed
    assert re.search("(What to do|How far it is|Nothing is to be done)[^\0]*$", text.strip().rpartition("\n\n")[2])
