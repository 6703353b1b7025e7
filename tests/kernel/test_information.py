"""LUN information of disks on a real kernel: what sysfs shows of LIO's answers."""

from collections.abc import Iterator
from contextlib import ExitStack
from uuid import UUID

import pytest

from blkrecov.errors import PathNotFound, ShadowNotFound
from blkrecov.page83.designator import CodeSet, Kind
from blkrecov.page83.export import Export, Exporter
from blkrecov.page83.identity import serial_of
from blkrecov.page83.information import (
    NO_SIGNATURE,
    BusType,
    Hex,
    LunInformation,
    StorageDeviceIdDescriptor,
    StorageIdentifier,
    find,
    from_json,
    to_json,
)
from blkrecov.page83.lun_information import of_disk
from tests.kernel.lab import run, take_down_exports

ONE = UUID("01234567-89ab-cdef-0123-456789abcdef")
TWO = UUID("fedcba98-7654-3210-fedc-ba9876543210")
SIGNATURE = UUID("12345678-0000-0000-0000-000000000000")
DEADLINE_S = 20.0


@pytest.fixture(scope="module")
def devices(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[UUID, str]]:
    """A block device for each LUN."""
    with ExitStack() as undo:
        made = {}
        for lun in (ONE, TWO):
            backing = tmp_path_factory.mktemp("information") / lun.hex
            run("truncate", "--size=16M", str(backing))
            made[lun] = run("losetup", "--find", "--show", str(backing))
            undo.callback(run, "losetup", "--detach", made[lun])
        yield made


@pytest.fixture
def exporter(devices: dict[UUID, str]) -> Iterator[Exporter]:
    yield Exporter(DEADLINE_S)
    take_down_exports()


def exported(exporter: Exporter, devices: dict[UUID, str], lun: UUID) -> Export:
    return exporter.export(f"lun-{lun.hex[:4]}", devices[lun], serial_of(lun))


def test_of_disk_is_what_lio_answers(exporter: Exporter, devices: dict[UUID, str]) -> None:
    """Identity, names and serial as we gave them to LIO. The revision is LIO's own."""
    said = of_disk(exported(exporter, devices, ONE).disk)
    assert said == LunInformation(
        device_type=0,
        device_type_modifier=0,
        command_queueing=True,
        bus_type=BusType.FILE_BACKED_VIRTUAL,
        vendor_id="blkrecov",
        product_id="lun-0123",
        product_revision=said.product_revision,
        serial_number=ONE.hex,
        disk_signature=NO_SIGNATURE,
        device_id_descriptor=StorageDeviceIdDescriptor(
            version=1,
            identifiers=(
                StorageIdentifier(
                    code_set=CodeSet.BINARY, type=Kind.NAA, identifier=Hex.fromhex("60014050123456789abcdef012345678")
                ),
                StorageIdentifier(
                    code_set=CodeSet.ASCII,
                    type=Kind.T10_VENDOR_ID,
                    identifier=Hex(b"blkrecovlun-0123:0123456789abcdef0123456789abcdef\0"),
                ),
                StorageIdentifier(code_set=CodeSet.BINARY, type=Kind.LOGICAL_UNIT_GROUP, identifier=Hex(bytes(4))),
            ),
        ),
        interconnects=(),
    )
    assert said.product_revision


def test_names_are_those_that_the_device_answers_itself(exporter: Exporter, devices: dict[UUID, str]) -> None:
    """sg3_utils asks the device, past sysfs."""
    disk = exported(exporter, devices, ONE).disk
    answer = {
        key.strip(): value.strip()
        for key, _, value in (line.partition(":") for line in run("sg_inq", disk).splitlines())
    }
    said = of_disk(disk)
    assert (said.vendor_id, said.product_id, said.product_revision, said.serial_number) == (
        answer["Vendor identification"],
        answer["Product identification"],
        answer["Product revision level"],
        answer["Unit serial number"],
    )
    assert said.command_queueing == ("CmdQue=1" in run("sg_inq", disk))


def test_the_signature_is_the_caller_s_to_say(exporter: Exporter, devices: dict[UUID, str]) -> None:
    """It is in the disk's data."""
    assert of_disk(exported(exporter, devices, ONE).disk, SIGNATURE).disk_signature == SIGNATURE


def test_a_lun_is_found_by_what_was_saved_of_it(exporter: Exporter, devices: dict[UUID, str]) -> None:
    """Saved as JSON, and found among two when it is another SCSI disk on another host; while it is away, nobody answers."""
    before = exported(exporter, devices, ONE)
    saved = to_json(of_disk(before.disk, SIGNATURE))
    exporter.unexport(before.name)
    other = exported(exporter, devices, TWO)
    with pytest.raises(ShadowNotFound):
        find(from_json(saved), {TWO: of_disk(other.disk)})
    after = exported(exporter, devices, ONE)
    assert after.hctl != before.hctl
    assert find(from_json(saved), {TWO: of_disk(other.disk), ONE: of_disk(after.disk)}) == ONE


def test_what_is_no_scsi_disk_is_refused(devices: dict[UUID, str]) -> None:
    """A block device of another kind, and none at all."""
    for path in (devices[ONE], "/dev/no-such-disk", "/etc/passwd"):
        with pytest.raises(PathNotFound, match="is no SCSI disk"):
            of_disk(path)
