"""LUNs grown, deleted, named, placed and planned on a real kernel."""

import os
from pathlib import Path

import pytest

from blkrecov.errors import AnotherCallInProgress, DeviceInUse, ObjectDeleted, ObjectFailed, ObjectNotFound
from blkrecov.geometry import Request
from blkrecov.model import Layout
from blkrecov.units import MIB, SECTOR, Bytes
from tests.kernel.lab import (
    Files,
    Kernel,
    Lab,
    Writer,
    blkrecov,
    checksum,
    disagreements,
    disk_of,
    fill,
    in_sync,
    lun,
    recover,
    regions_of,
    run,
    show,
    size_of,
    tables,
)

SIZE = 12 * MIB
MEMBERS = {"linear": 1, "raid0": 2, "raid1": 2, "raid4": 3, "raid5": 3, "raid6": 4, "raid10": 4}


@pytest.mark.parametrize("layout", MEMBERS)
def test_a_lun_grows_under_a_mounted_file_system(lab: Lab, layout: str) -> None:
    """The disk follows at once, nothing is lost, and the new part is as redundant as the old one."""
    lab.create(MEMBERS[layout])
    with lab.opened() as array:
        disk = lun(array, "vol", layout, SIZE, members=MEMBERS[layout])
        files = Files.make(disk, lab.directory / "mnt", 3 * MIB)
        in_sync(array, "vol")
        with Writer(files.room("writes", MIB), MIB) as writer:
            array.carry_out(array.propose_extend("vol", Bytes(2 * SIZE)))
            assert size_of(disk) == show(array, "vol")["size"] == 2 * SIZE
            writer.wait_for(10)
        run("resize2fs", disk)
        files.add(8 * MIB)
        in_sync(array, "vol")
        if array.document.lun("vol").layout.fault_tolerant:
            array.fail_drive(show(array, "vol")["members"][0]["drive"])
        assert (files.wrong(), writer.wrong()) == ([], [])
        files.umount()


def test_the_new_part_of_a_lun_has_parity_over_a_restart(lab: Lab) -> None:
    """The kernel synchronises what a LUN grew by, and a power cut right after does not make it forget to."""
    lab.create(3)
    with lab.opened() as array:
        lun(array, "vol", "raid5", SIZE, exported=False)
        in_sync(array, "vol")
        array.carry_out(array.propose_extend("vol", Bytes(3 * SIZE)))
        digest = fill(disk_of(array, "vol"), 3 * SIZE, seed=3)
    lab.power_cut()
    with lab.opened() as array:
        assert checksum(disk_of(array, "vol")) == digest
        in_sync(array, "vol")
        assert disagreements(array, "vol") == []


@pytest.mark.parametrize("layout", ["raid1", "raid5", "raid6", "raid10"])
def test_members_agree_in_the_new_part_whatever_lay_there(lab: Lab, layout: str) -> None:
    """Linux 6.1 says that a raid10 which grew is in sync, and has looked at nothing of the new part (proposal.evened())."""
    lab.create(4)
    with lab.opened() as array:
        lun(array, "old", "raid0", 8 * SIZE, members=4, exported=False)
        fill(disk_of(array, "old"), 8 * SIZE, seed=9)
        array.carry_out(array.propose_delete("old"))
        lun(array, "vol", layout, SIZE, members=MEMBERS[layout], exported=False)
        in_sync(array, "vol")
        array.carry_out(array.propose_extend("vol", Bytes(2 * SIZE)))
        in_sync(array, "vol")
        assert disagreements(array, "vol") == []
        raid = array.observe().raid(array.document.lun("vol"))
        assert raid is not None
        # Of a raid10 the kernel counts the array, of others a member.
        assert layout != "raid10" or raid.total * SECTOR >= 2 * SIZE


def test_a_degraded_lun_does_not_grow(lab: Lab) -> None:
    """The kernel would let it, and forget the new part's changes for the member that comes back."""
    lab.create(2)
    with lab.opened() as array:
        lun(array, "vol", "raid1", SIZE, exported=False)
        in_sync(array, "vol")
        array.fail_drive("d0")
        with pytest.raises(ObjectFailed, match="cannot grow before it has recovered"):
            array.propose_extend("vol", Bytes(2 * SIZE))


def test_a_lun_that_is_mounted_is_not_deleted(lab: Lab) -> None:
    """The mount point is named, and the file system goes on."""
    lab.create(2)
    with lab.opened() as array:
        files = Files.make(lun(array, "vol", "raid1", SIZE), lab.directory / "mnt", MIB)
        with pytest.raises(DeviceInUse, match=f"a mount on {files.point}"):
            array.propose_delete("vol")
        assert show(array, "vol")["mounts"] == [{"path": str(files.point), "fstype": "ext4"}]
        assert files.wrong() == []
        files.umount()


@pytest.mark.parametrize("exported", [True, False])
def test_a_lun_that_is_open_is_not_deleted(lab: Lab, exported: bool) -> None:
    """The process is named, whichever of the LUN's nodes it has open; the array is not stopped either."""
    lab.create(2)
    with lab.opened() as array:
        disk = lun(array, "vol", "raid1", SIZE, exported=exported)
        with open(disk, "rb"):
            with pytest.raises(DeviceInUse, match=f"process {os.getpid()} "):
                array.propose_delete("vol")
            with pytest.raises(DeviceInUse, match=f"process {os.getpid()} "):
                array.stop()
        assert checksum(disk, MIB)


def test_deleted_is_not_the_same_as_never_heard_of(lab: Lab) -> None:
    """VDS_E_OBJECT_DELETED and VDS_E_OBJECT_NOT_FOUND, and the name is free again."""
    lab.create(2)
    with lab.opened() as array:
        lun(array, "vol", "raid1", SIZE, exported=False)
        uuid = str(array.document.lun("vol").uuid)
        array.carry_out(array.propose_delete("vol"))
        for name in ("vol", uuid):
            with pytest.raises(ObjectDeleted):
                array.document.lun(name)
        with pytest.raises(ObjectNotFound):
            array.document.lun("other")
        assert [regions_of(array, drive) for drive in ("d0", "d1")] == [set(), set()]
        lun(array, "vol", "raid1", SIZE, exported=False)
        assert str(array.document.lun("vol").uuid) != uuid


def test_a_new_lun_shows_nothing_of_a_deleted_one_as_its_state(lab: Lab) -> None:
    """Superblocks of the old LUN lie where the new one's go: they must not pass for them."""
    lab.create(3)
    with lab.opened() as array:
        lun(array, "old", "raid1", SIZE, exported=False)
        in_sync(array, "old")
        array.carry_out(array.propose_delete("old"))
        disk = lun(array, "new", "raid5", SIZE, exported=False)
        digest = fill(disk, SIZE, seed=1)
        in_sync(array, "new")
        assert (disagreements(array, "new"), checksum(disk)) == ([], digest)


def test_a_lun_without_export_has_a_node_and_no_disk(lab: Lab) -> None:
    """There is nothing that could answer page 83, so it is not said to be verified; recovery works all the same."""
    lab.create(2, spares=1)
    before = Kernel.now()
    with lab.opened() as array:
        node = lun(array, "vol", "raid1", SIZE, exported=False)
        shown = show(array, "vol")
        assert (shown["device"], shown["node"]) == (None, "/dev/mapper/blkrecov-lab-vol")
        assert shown["page83"]["verified"] is False
        assert (Kernel.now().hosts, Kernel.now().lio) == (before.hosts, before.lio)
        digest = fill(node, SIZE, seed=1)
        in_sync(array, "vol")
        array.carry_out(array.propose_extend("vol", Bytes(2 * SIZE)))
        assert size_of(node) == 2 * SIZE
        in_sync(array, "vol")
        array.fail_drive("d1")
        assert recover(array, "vol").code == "S_OK"
        assert (checksum(node, SIZE), disagreements(array, "vol")) == (digest, [])
        array.carry_out(array.propose_delete("vol"))
        assert not Path(node).exists()


def test_names_may_have_hyphens(lab: Lab) -> None:
    """Doubled below /dev/mapper: a-b's plex and the LUN b of array a are not one."""
    lab.name = "my-lab"
    lab.create(2)
    with lab.opened() as array:
        lun(array, "a-b-plex", "raid1", SIZE)
        assert lun(array, "a-b", "raid1", SIZE)
        assert show(array, "a-b")["node"] == "/dev/mapper/blkrecov-my--lab-a--b"
        assert [show(array, name)["status"] for name in ("a-b", "a-b-plex")] == ["online", "online"]
        array.carry_out(array.propose_delete("a-b"))
        assert show(array, "a-b-plex")["status"] == "online"


def test_members_of_a_lun_never_share_a_drive(lab: Lab) -> None:
    """However crowded the drives are: losing one drive must not cost two members."""
    lab.create(5)
    with lab.opened() as array:
        for number, layout in enumerate(("raid1", "raid6", "raid10")):
            lun(array, f"vol{number}", layout, 4 * MIB, exported=False)
        drives = [[member["drive"] for member in show(array, item.name)["members"]] for item in array.document.luns]
        assert all(len(set(names)) == len(names) for names in drives)
        assert [len(names) for names in drives] == [2, 4, 4]


def test_two_arrays_do_not_touch_each_other(lab: Lab) -> None:
    """Same LUN and drive names, one machine: what happens to one leaves the other's devices and contents as they were."""
    other = Lab(lab.directory / "other", name="other")
    other.directory.mkdir()
    for each in (lab, other):
        each.create(2, spares=1)
    with other.opened() as array:
        disk = lun(array, "vol", "raid1", SIZE)
        digest = fill(disk, SIZE, seed=1)
        in_sync(array, "vol")
    sequence = other.sequence()
    before = [line for line in tables().splitlines() if line.startswith("blkrecov-other-")]
    with lab.opened() as array:
        lun(array, "vol", "raid1", SIZE)
        in_sync(array, "vol")
        array.fail_drive("d0")
        assert recover(array, "vol").code == "S_OK"
        array.carry_out(array.propose_delete("vol"))
        array.stop()
    assert [line for line in tables().splitlines() if line.startswith("blkrecov-other-")] == before
    assert (checksum(disk), other.sequence()) == (digest, sequence)
    other.stop()


def test_one_operation_at_a_time_on_a_lun(lab: Lab) -> None:
    """While a task is under way others are refused, naming it."""
    lab.create(3)
    with lab.opened() as array:
        lun(array, "vol", "raid1", SIZE, exported=False)
        in_sync(array, "vol")
        number = array.start(*array.propose_scrub("vol", repair=False)).id
        for refused in (
            lambda: array.propose_scrub("vol", repair=False),
            lambda: array.propose_recover("vol", None),
            lambda: array.propose_extend("vol", Bytes(2 * SIZE)),
            lambda: array.propose_delete("vol"),
        ):
            with pytest.raises(AnotherCallInProgress, match=f"task {number} "):
                refused()
        assert array.wait(number, timeout_s=60).code == "S_OK"


def test_a_plan_changes_nothing(lab: Lab) -> None:
    """--plan of every command that has it: it prints steps with tables, and neither kernel nor drives nor files differ after."""
    lab.create(3, spares=1)
    with lab.opened() as array:
        lun(array, "vol", "raid1", SIZE)
        in_sync(array, "vol")
        array.fail_drive("d0")
        lun(array, "well", "raid1", SIZE, drives=("d1", "d2"), exported=False)
        in_sync(array, "well")
    before = (tables(), Kernel.now(), lab.sequence(), sorted(lab.directory.iterdir()))
    for words in (
        ("drive", "add", str(lab.path("d9")), "--size", "32M"),
        ("lun", "create", "new", "--layout", "raid1", "--size", "4M"),
        ("lun", "extend", "well", "--size", "16M"),
        ("lun", "delete", "well"),
        ("drive", "fail", "d1"),
        ("recover", "vol"),
        ("scrub", "well"),
    ):
        answer = blkrecov(lab, *words, "--plan", "--json")
        assert (answer.status, answer.err) == (0, "")
        assert any("configuration" in line for line in answer.json["steps"])
        assert (tables(), Kernel.now(), lab.sequence(), sorted(lab.directory.iterdir())) == before


def test_a_conflicting_device_name_undoes_a_creation(lab: Lab) -> None:
    """The plex cannot be made: legs, configuration and exports are as before, and the conflicting device is not touched."""
    lab.create(3)
    run("dmsetup", "create", "blkrecov-lab-vol-plex", "--table", "0 8 error")
    before, sequence = (tables(), Kernel.now()), lab.sequence()
    answer = blkrecov(lab, "lun", "create", "vol", "--layout", "raid5", "--size", "4M", "--json")
    assert (answer.status, answer.error["code"]) == (1, "VDS_E_PROVIDER_FAILURE")
    assert "blkrecov-lab-vol-plex" in answer.error["message"]
    assert (tables(), Kernel.now()) == before
    with lab.opened() as array:
        assert (array.document.luns, array.document.tombstones) == ((), ())
        assert array.document.sequence > sequence
        assert regions_of(array, "d0") == set()
    run("dmsetup", "remove", "blkrecov-lab-vol-plex")
    assert blkrecov(lab, "lun", "create", "vol", "--layout", "raid5", "--size", "4M").status == 0


def test_a_disk_with_the_same_identity_undoes_a_creation(lab: Lab) -> None:
    """Two disks with one identity are refused, naming the other; everything below the export is taken back."""
    from blkrecov.errors import IdentityMismatch
    from blkrecov.page83.export import Exporter
    from blkrecov.page83.identity import serial_of

    lab.create(2)
    run("dmsetup", "create", "blkrecov-foreign", "--table", f"0 {SIZE // 512} zero")
    with lab.opened() as array:
        proposal = array.propose_lun(Request(name="vol", layout=Layout.RAID1, size=Bytes(SIZE)))
        assert proposal.lun is not None
        claimed = Exporter().export("foreign", "/dev/mapper/blkrecov-foreign", serial_of(proposal.lun))
        before = (tables(), Kernel.now())
        with pytest.raises(IdentityMismatch, match=claimed.disk):
            array.create_lun(proposal)
        assert (tables(), Kernel.now()) == before
        assert array.document.luns == ()
        Exporter().unexport("foreign")
        assert lun(array, "vol", "raid1", SIZE)
    run("dmsetup", "remove", "--retry", "blkrecov-foreign")
