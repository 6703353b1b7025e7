"""Faults at the drive port: what is refused, which blocks are bad, and that each is put in once and survives what it should."""

from dataclasses import replace
from math import inf, nan

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blkrecov import faults, provision, stack, views
from blkrecov.converge import converge
from blkrecov.dm import names
from blkrecov.dm.table import TargetLine
from blkrecov.errors import InvalidArgument, InvalidOperation, ObjectNotFound
from blkrecov.model import Document, Drive, DriveStatus, Fault, FaultKind, decode, encode
from blkrecov.steps import CreateDevice, MarkUnreadable, ReplaceTable
from tests.unit.arrays import drive, drives
from tests.unit.machine import running

AFTER = Fault(FaultKind.AFTER, 30)
UNREADABLE = Fault(FaultKind.ERROR_RATE, 1)
SLOW = Fault(FaultKind.SLOW, 20)
DROPS = Fault(FaultKind.DROP_WRITES)
FAULTS = (AFTER, UNREADABLE, SLOW, DROPS)


def faulty(fault: Fault, units: int = 200) -> Drive:
    return msgspec.structs.replace(drive(0, units), fault=fault)


def with_fault(fault: Fault, document: Document | None = None) -> Document:
    return faults.propose(document or drives(2), "d0", fault).document


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (AFTER, "fails after 30 s"),
        (Fault(FaultKind.ERROR_RATE, 1.0), "1 % of its blocks are unreadable"),
        (Fault(FaultKind.ERROR_RATE, 0.25), "0.25 % of its blocks are unreadable"),
        (SLOW, "each I/O takes 20 ms longer"),
        (DROPS, "loses what is written to it"),
    ],
)
def test_a_fault_is_told_in_words(fault: Fault, words: str) -> None:
    """A whole percentage comes as a fraction from the command line."""
    assert fault.words == words


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_in_the_document_and_the_drive_stays_online(fault: Fault) -> None:
    """What becomes of the members is for the kernel to find out."""
    document = with_fault(fault)
    assert decode(encode(document)) == document
    assert (document.drive("d0").fault, document.drive("d0").status) == (fault, DriveStatus.ONLINE)
    assert document.drive("d1").fault is None
    shown = views.drive_view(document, document.drive("d0"))
    assert shown["fault"] == {"kind": fault.kind.value, "value": fault.value}


def test_a_drive_has_no_fault_to_show_by_default() -> None:
    """Documents of earlier versions have none either."""
    document = drives(1)
    assert views.drive_view(document, document.drive("d0"))["fault"] is None


@pytest.mark.parametrize(
    "fault",
    [
        Fault(FaultKind.AFTER, -1),
        Fault(FaultKind.AFTER, faults.MOST_SECONDS + 1),
        Fault(FaultKind.SLOW, 0),
        Fault(FaultKind.SLOW, 60_001),
        Fault(FaultKind.ERROR_RATE, 0),
        Fault(FaultKind.ERROR_RATE, 100.1),
        Fault(FaultKind.ERROR_RATE, nan),
        Fault(FaultKind.ERROR_RATE, inf),
    ],
)
def test_a_number_out_of_range_is_refused(fault: Fault) -> None:
    """Before anything is written: the kernel would take some of them."""
    with pytest.raises(InvalidArgument):
        with_fault(fault)


def test_more_blocks_than_the_kernel_takes_in_a_second_are_refused() -> None:
    """200 MiB are 51200 blocks, of which 16 percent are 8192."""
    assert len(faults.unreadable(with_fault(Fault(FaultKind.ERROR_RATE, 16)).drive("d0"))) == 8192
    with pytest.raises(InvalidArgument) as refused:
        with_fault(Fault(FaultKind.ERROR_RATE, 17))
    assert refused.value.remedy == "give up to 16.0000"


def test_one_fault_at_a_time() -> None:
    """What a drive has lost because of one fault would be forgotten with another in its place."""
    with pytest.raises(InvalidOperation) as refused:
        with_fault(SLOW, with_fault(DROPS))
    assert refused.value.remedy == "take that away first, with: blkrecov drive reconnect d0"


def test_a_drive_that_is_not_online_is_refused() -> None:
    """Its port fails everything already."""
    with pytest.raises(InvalidOperation):
        with_fault(SLOW, provision.fail_drive(drives(2), "d0").document)


def test_a_drive_that_is_not_there_is_refused() -> None:
    """As by every other command."""
    with pytest.raises(ObjectNotFound):
        faults.propose(drives(1), "d7", SLOW)


def test_a_drive_that_fails_keeps_its_fault() -> None:
    """That it has lost writes has to be known when it is back."""
    assert provision.fail_drive(with_fault(DROPS), "d0").document.drive("d0").fault == DROPS


@given(units=st.integers(1, 30), rate=st.floats(0.0001, 100), number=st.integers(0, 3))
def test_bad_blocks_are_spread_over_the_data_area(units: int, rate: float, number: int) -> None:
    """Labels and metadata slots stay readable, no block is named twice, and a drive keeps its bad blocks."""
    fault = Fault(FaultKind.ERROR_RATE, rate)
    bad = faults.unreadable(msgspec.structs.replace(drive(number, units), fault=fault))
    assert bad == faults.unreadable(msgspec.structs.replace(drive(number, units), fault=fault))
    assert len(bad) == max(int(units * 256 * rate / 100), 1)
    assert list(bad) == sorted(set(bad))
    assert 2048 <= bad[0] <= bad[-1] < 2048 + units * 256
    halves = sum(block < 2048 + units * 128 for block in bad)
    assert abs(2 * halves - len(bad)) <= 2


def test_all_of_a_drive_may_be_bad() -> None:
    """A drive of 8 MiB for data, which begin at block 2048."""
    assert faults.unreadable(faulty(Fault(FaultKind.ERROR_RATE, 100), 8)) == tuple(range(2048, 4096))


def test_drives_have_bad_blocks_of_their_own() -> None:
    """A mirror whose members are bad in the same places could not be repaired."""
    first, second = (faults.unreadable(msgspec.structs.replace(drive(n), fault=UNREADABLE)) for n in (0, 1))
    assert len(set(first) & set(second)) < len(first) / 10


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        (AFTER, "0 442368 flakey /dev/loop0 0 30 4294967265 0"),
        (UNREADABLE, "0 442368 dust /dev/loop0 0 4096"),
        (SLOW, "0 442368 delay /dev/loop0 0 20 /dev/loop0 0 20"),
        (DROPS, "0 442368 flakey /dev/loop0 0 0 1 1 drop_writes"),
    ],
)
def test_a_port_is_made_of_its_fault(fault: Fault, line: str) -> None:
    """The kernel counts seconds in 32 bits, those before and those after together."""
    (found,) = stack.port(drives(1), faulty(fault), "/dev/loop0").table
    assert str(found) == line


@pytest.mark.parametrize("fault", FAULTS)
def test_a_port_of_a_drive_that_failed_fails_all_io_whatever_its_fault(fault: Fault) -> None:
    """As without."""
    failed = msgspec.structs.replace(faulty(fault), status=DriveStatus.FAILED)
    assert stack.port(drives(1), failed, "/dev/loop0").table[0].kind == "error"


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_put_in_once(fault: Fault) -> None:
    """One table for the port, messages where there are some, and nothing at the second look; after a restart all of it again."""
    machine, document = running(drives(2)), with_fault(fault)
    steps = [step for group in converge(document, machine.observe(document)) for step in group.steps]
    marks = [MarkUnreadable] if fault is UNREADABLE else []
    assert [type(step) for step in steps] == [ReplaceTable, *marks]
    for step in steps:
        machine.act(step)
    assert converge(document, machine.observe(document)) == ()
    machine.power_cut()
    (ports,) = converge(document, machine.observe(document))
    assert [type(step) for step in ports.steps] == [CreateDevice, *marks, CreateDevice]


def test_bad_blocks_are_named_when_that_was_cut_short() -> None:
    """The port has its table already, and reads everything."""
    machine, document = running(drives(2)), with_fault(UNREADABLE)
    load, mark = (step for group in converge(document, machine.observe(document)) for step in group.steps)
    machine.act(load)
    (ports,) = converge(document, machine.observe(document))
    assert ports.steps == (mark,)


def test_a_later_kernel_s_words_for_a_flakey_device_are_known() -> None:
    """It names what fails where we name nothing."""
    document = with_fault(AFTER)
    machine = running(document)
    name = names.drive_name("lab", "d0")
    live = machine.devices[name]
    assert live.table[0].params == "7:0 0 30 4294967265 0"
    line = TargetLine(
        start=live.table[0].start,
        length=live.table[0].length,
        kind="flakey",
        params="7:0 0 30 4294967265 2 error_reads error_writes",
    )
    machine.devices[name] = replace(live, table=(line,))
    assert converge(document, machine.observe(document)) == ()
    machine.devices[name] = replace(live, table=(replace(line, params="7:0 0 30 4294967265 1 drop_writes"),))
    assert converge(document, machine.observe(document)) != ()
