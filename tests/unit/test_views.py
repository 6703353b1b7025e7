"""What is shown: words, numbers and shapes that other programs rely on."""

from uuid import UUID

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blkrecov import provision, recover, replace, shadows, tasks, views
from blkrecov.condition import state_of
from blkrecov.dm import names
from blkrecov.dm.table import TargetLine
from blkrecov.errors import BlkrecovError, ObjectFailed
from blkrecov.model import (
    Document,
    DriveStatus,
    Health,
    Layout,
    Lun,
    LunStatus,
    MemberState,
    Pair,
    Phase,
    Restore,
    Task,
    TaskKind,
    TaskState,
)
from blkrecov.observed import Live, Observed
from blkrecov.units import MIB, SECTOR, Bytes, Sectors
from tests.unit.arrays import (
    array,
    drive,
    drives,
    raid_words,
    seen,
    uuids,
    with_lost,
    with_lun,
    with_plex,
    with_shadow,
    with_states,
)

LOST = MemberState.FAILED
GOOD = MemberState.IN_SYNC
REBUILDING = MemberState.REBUILDING

# Others rely on these: more may come, none may go.
DRIVE = {"name", "uuid", "path", "size", "free", "status", "hot_spare", "regions"}
REGION = {"id", "start", "length", "role", "lun", "layout", "member", "status"}
LUN = {
    *("name", "uuid", "layout", "size", "status", "health", "device", "node", "page83", "fault_tolerant"),
    *("members", "shadow_copy_of", "mounts", "task"),
}
MEMBER = {"index", "drive", "state"}
TASK = {"id", "kind", "objects", "state", "paused", "percent", "hresult", "code", "message", "remedy", "why", "bytes"}


def mirror() -> tuple[Document, Lun]:
    """A raid1 v on d0 and d1, and d2."""
    return with_lun(drives(3), Layout.RAID1, on=("d0", "d1"))


def shown(document: Document, observed: Observed) -> views.Json:
    return views.lun_view(
        document,
        observed,
        document.lun("v"),
        node="/dev/mapper/blkrecov-lab-v",
        verified=True,
        mounts=(("/mnt", "ext4"),),
    )


# Status and health.


def test_a_lun_in_sync_is_healthy() -> None:
    """VDS_LS_ONLINE and VDS_H_HEALTHY."""
    document, lun = mirror()
    assert state_of(document, seen(document, raid_words("AA")), lun) == (LunStatus.ONLINE, Health.HEALTHY)


@pytest.mark.parametrize("layout", [Layout.LINEAR, Layout.RAID0])
def test_a_lun_without_redundancy_is_healthy_or_failed(layout: Layout) -> None:
    """There is nothing between."""
    document, lun = with_lun(drives(2, 40), layout)
    whole, part = seen(document, raid_words("AA")), seen(document, raid_words("AA"), away=("d1",))
    assert state_of(document, whole, lun) == (LunStatus.ONLINE, Health.HEALTHY)
    assert state_of(document, part, lun) == (LunStatus.FAILED, Health.FAILED)


def test_a_lun_that_is_not_loaded_is_offline() -> None:
    """Nothing is wrong with it as far as can be told; nobody can use it either."""
    document, lun = mirror()
    assert state_of(document, seen(document), lun) == (LunStatus.OFFLINE, Health.UNKNOWN)


def test_a_lun_has_lost_redundancy_whoever_says_so() -> None:
    """The document, the kernel, or a drive that is nowhere: VDS_H_FAILED_REDUNDANCY."""
    document, lun = mirror()
    degraded = (LunStatus.ONLINE, Health.FAILED_REDUNDANCY)
    assert state_of(document, seen(document, raid_words("DA")), lun) == degraded
    assert state_of(document, seen(document, raid_words("AA"), away=("d1",)), lun) == degraded
    assert state_of(document, seen(document, raid_words("AA")), with_states(lun, LOST)) == degraded
    failed = provision.fail_drive(document, "d0").document
    assert state_of(failed, seen(failed, raid_words("AA")), failed.lun("v")) == degraded


@pytest.mark.parametrize("words", [None, raid_words("DD"), raid_words("AA")])
def test_a_lun_that_has_lost_too_much_has_failed(words: str | None) -> None:
    """Loaded or not, and whatever the kernel believes: md never gives up a mirror's last leg."""
    document, lun = mirror()
    lun = with_states(lun, LOST, LOST)
    document = document.with_lun(lun)
    assert state_of(document, seen(document, words), lun) == (LunStatus.FAILED, Health.FAILED)


def test_the_last_whole_member_is_no_redundancy_for_one_that_is_being_rebuilt() -> None:
    """What is half regenerated is no copy."""
    document, lun = mirror()
    lun = with_states(lun, LOST, REBUILDING)
    document = document.with_lun(lun)
    words = raid_words("Da", "recover", "3/64")
    assert state_of(document, seen(document, words), lun) == (LunStatus.FAILED, Health.FAILED)


@pytest.mark.parametrize(
    "words",
    [
        raid_words("AA", "resync", "3/64"),
        raid_words("Aa", "recover", "3/64"),
        raid_words("Aa", "idle", "64/64"),
        raid_words("AA", "repair", "3/64"),
    ],
)
def test_a_lun_that_the_kernel_works_on_is_rebuilding(words: str) -> None:
    """Also while the kernel is only about to begin ("Aa 64/64 idle")."""
    document, lun = mirror()
    assert state_of(document, seen(document, words), lun) == (LunStatus.ONLINE, Health.REBUILDING)


def test_a_substitute_is_being_rebuilt_until_that_is_written_down() -> None:
    """The kernel has ended; a power cut now would leave a member that the document does not call whole."""
    document, lun = mirror()
    lun = with_states(lun, REBUILDING)
    document = document.with_lun(lun)
    assert state_of(document, seen(document, raid_words("AA")), lun) == (LunStatus.ONLINE, Health.REBUILDING)


def test_a_check_is_no_rebuild() -> None:
    """It only reads."""
    document, lun = mirror()
    words = raid_words("AA", "check", "3/64")
    assert state_of(document, seen(document, words), lun) == (LunStatus.ONLINE, Health.HEALTHY)


@pytest.mark.parametrize(
    ("change", "health"),
    [
        ({"suspect": True}, Health.FAILING_REDUNDANCY),
        ({"mismatches": 8}, Health.FAILING_REDUNDANCY),
        ({"mismatches": 0}, Health.HEALTHY),
    ],
)
def test_members_that_may_disagree_are_failing_redundancy(change: dict[str, int | bool], health: Health) -> None:
    """All of them are there; which one would be believed is the question."""
    document, lun = mirror()
    lun = msgspec.structs.replace(lun, **change)
    document = document.with_lun(lun)
    assert state_of(document, seen(document, raid_words("AA")), lun) == (LunStatus.ONLINE, health)


def set_aside(document: Document, name: str) -> Document:
    return document.with_drive(msgspec.structs.replace(document.drive(name), failing="failed 3 times"))


@pytest.mark.parametrize("layout", Layout)
def test_a_lun_on_a_drive_that_is_set_aside_is_failing(layout: Layout) -> None:
    """All of it works still. With redundancy only that is in danger, without it is the LUN."""
    document, lun = with_lun(drives(6, 400), layout)
    document = set_aside(document, document.drive_of(lun.members[0].drive).name)
    observed = seen(document, raid_words("A" * len(lun.members)))
    health = Health.FAILING_REDUNDANCY if layout.fault_tolerant else Health.FAILING
    assert state_of(document, observed, lun) == (LunStatus.ONLINE, health)


def test_a_drive_that_is_set_aside_endangers_only_what_lies_on_it_in_sync() -> None:
    """Not other LUNs, and not one that is being rebuilt onto it or from it, for which there is a word already."""
    document, lun = mirror()
    healthy = (LunStatus.ONLINE, Health.HEALTHY)
    assert state_of(set_aside(document, "d2"), seen(document, raid_words("AA")), lun) == healthy
    lun = with_states(lun, REBUILDING)
    document = set_aside(document.with_lun(lun), "d0")
    rebuilding = (LunStatus.ONLINE, Health.REBUILDING)
    assert state_of(document, seen(document, raid_words("aA", "recover", "3/64")), lun) == rebuilding


@pytest.mark.parametrize(
    ("layout", "states", "aside", "health"),
    [
        (Layout.RAID1, (LOST,), 1, Health.FAILED_REDUNDANCY_FAILING),
        (Layout.RAID1, (LOST,), 0, Health.FAILED_REDUNDANCY),
        (Layout.RAID5, (LOST,), 2, Health.FAILED_REDUNDANCY_FAILING),
        (Layout.RAID6, (LOST,), 2, Health.FAILED_REDUNDANCY),
        (Layout.RAID6, (LOST, LOST), 2, Health.FAILED_REDUNDANCY_FAILING),
        (Layout.RAID6, (LOST, REBUILDING), 2, Health.FAILED_REDUNDANCY_FAILING),
        (Layout.RAID10, (LOST,), 1, Health.FAILED_REDUNDANCY_FAILING),
        (Layout.RAID10, (LOST,), 2, Health.FAILED_REDUNDANCY),
    ],
)
def test_the_last_that_holds_a_lun_may_be_failing(
    layout: Layout, states: tuple[MemberState, ...], aside: int, health: Health
) -> None:
    """VDS_H_FAILED_REDUNDANCY_FAILING: if it goes, all goes. In a raid10 that is the lost one's partner, and no other."""
    document, lun = with_lun(drives(4), layout)
    lun = with_states(lun, *states)
    document = set_aside(document.with_lun(lun), document.drive_of(lun.members[aside].drive).name)
    letters = "".join({LOST: "D", REBUILDING: "a", GOOD: "A"}[member.state] for member in lun.members)
    assert state_of(document, seen(document, raid_words(letters)), lun) == (LunStatus.ONLINE, health)


def test_what_is_lost_is_shown_before_what_is_under_way() -> None:
    """A raid6 with one member lost and another one being rebuilt: the lost one is what needs an operator."""
    document, lun = with_lun(drives(5), Layout.RAID6)
    lun = msgspec.structs.replace(with_states(lun, LOST, REBUILDING), suspect=True)
    document = document.with_lun(lun)
    observed = seen(document, raid_words("DaAA", "recover", "3/64"))
    assert state_of(document, observed, lun) == (LunStatus.ONLINE, Health.FAILED_REDUNDANCY)


# How much more may be lost.


@pytest.mark.parametrize(
    ("layout", "members", "states", "more"),
    [
        (Layout.LINEAR, None, (), 0),
        (Layout.RAID0, 3, (), 0),
        (Layout.RAID1, 2, (), 1),
        (Layout.RAID1, 3, (), 2),
        (Layout.RAID1, 3, (LOST,), 1),
        (Layout.RAID1, 3, (GOOD, REBUILDING), 1),
        (Layout.RAID1, 3, (LOST, REBUILDING), 0),
        (Layout.RAID1, 3, (LOST, LOST, LOST), 0),
        (Layout.RAID4, 3, (), 1),
        (Layout.RAID4, 3, (GOOD, GOOD, LOST), 0),
        (Layout.RAID5, 5, (), 1),
        (Layout.RAID5, 5, (REBUILDING,), 0),
        (Layout.RAID5, 5, (LOST, LOST), 0),
        (Layout.RAID6, 5, (), 2),
        (Layout.RAID6, 5, (LOST,), 1),
        (Layout.RAID6, 5, (LOST, REBUILDING), 0),
        (Layout.RAID6, 5, (LOST, LOST, LOST), 0),
        (Layout.RAID10, 4, (), 1),
        (Layout.RAID10, 4, (LOST,), 0),
        (Layout.RAID10, 4, (REBUILDING,), 0),
        (Layout.RAID10, 4, (LOST, GOOD, LOST), 0),
    ],
)
def test_tolerance_counts_members_whichever_they_are(
    layout: Layout, members: int | None, states: tuple[MemberState, ...], more: int
) -> None:
    """The worst choice counts: a raid10 could lose one of each pair, and dies of the wrong two. What is half regenerated is
    as good as lost.
    """
    document, lun = with_lun(drives(6), layout, members=members)
    lun = with_states(lun, *states)
    document = document.with_lun(lun)
    assert views.tolerance(document, seen(document), lun) == more


def test_tolerance_counts_what_the_kernel_and_the_drives_say() -> None:
    """The same member counts once, whoever calls it lost."""
    document, lun = with_lun(drives(5), Layout.RAID6, on=("d0", "d1", "d2", "d3", "d4"))
    assert views.tolerance(document, seen(document, raid_words("DAAAA")), lun) == 1
    assert views.tolerance(document, seen(document, raid_words("AAAAA"), away=("d0",)), lun) == 1
    assert views.tolerance(document, seen(document, raid_words("DAAAA"), away=("d0",)), lun) == 1
    assert views.tolerance(document, seen(document, raid_words("DAAAA"), away=("d1",)), lun) == 0


# Members.


def test_a_member_is_what_can_be_told_of_it() -> None:
    """The kernel's letters, the document's words and the drives' places, one word each."""
    document, lun = with_lun(drives(6), Layout.RAID6, on=("d0", "d1", "d2", "d3", "d4", "d5"))
    lun = with_states(lun, GOOD, REBUILDING, LOST)
    document = document.with_lun(lun)
    observed = seen(document, raid_words("AaDaDA"), away=("d5",))
    states = [views.member_state(document, observed, lun, index) for index in range(6)]
    assert states == ["in_sync", "rebuilding", "failed", "out_of_sync", "failed", "failed"]


@pytest.mark.parametrize(
    ("status", "word"),
    [
        (DriveStatus.ONLINE, "in_sync"),
        (DriveStatus.OFFLINE, "missing"),
        (DriveStatus.FAILED, "failed"),
        (DriveStatus.REMOVED, "missing"),
    ],
)
def test_a_member_on_a_drive_that_is_nowhere_is_missing(status: DriveStatus, word: str) -> None:
    """Which is another thing to look for than one that failed."""
    document, lun = mirror()
    document = document.with_drive(msgspec.structs.replace(document.drive("d0"), status=status))
    assert views.member_state(document, seen(document, raid_words("AA")), lun, 0) == word


def test_members_of_a_lun_that_is_not_loaded_are_what_the_document_says() -> None:
    """Nobody else has a word on it."""
    document, lun = mirror()
    lun = with_states(lun, GOOD, REBUILDING)
    document = document.with_lun(lun)
    observed = seen(document)
    assert [views.member_state(document, observed, lun, index) for index in (0, 1)] == ["in_sync", "rebuilding"]


# Regions.


def test_regions_of_a_drive_of_one_mirror() -> None:
    """Literally, in bytes: label and slots 8 MiB, metadata 1, data 64, free 135, and what the end of the drive is kept for."""
    document, _ = mirror()
    rows = [
        (row["id"], row["start"] // MIB, row["length"] // MIB, row["role"], row["lun"], row["status"])
        for row in views.regions(document, document.drive("d0"))
    ]
    assert rows == [
        ("d0:0", 0, 8, "label", None, "ok"),
        ("d0:16384", 8, 1, "meta", "v", "ok"),
        ("d0:18432", 9, 64, "data", "v", "ok"),
        ("d0:149504", 73, 135, "free", None, "ok"),
        ("d0:425984", 208, 8, "label", None, "ok"),
    ]


def test_the_space_of_a_deleted_lun_is_a_free_region_between_others() -> None:
    """Every gap is shown, where it is."""
    document, first = mirror()
    for name in ("w", "x"):
        document, _ = with_lun(document, Layout.RAID0, name, mib=20, on=("d0", "d1"))
    document = document.without_lun(first).without_lun(document.lun("w"))
    document, _ = with_lun(document, Layout.RAID0, "y", mib=10, on=("d0", "d1"))
    rows = [
        (row["start"] // MIB, row["length"] // MIB, row["role"], row["lun"])
        for row in views.regions(document, document.drive("d0"))
    ]
    assert rows == [
        (0, 8, "label", None),
        (8, 5, "data", "y"),
        (13, 70, "free", None),
        (83, 10, "data", "x"),
        (93, 115, "free", None),
        (208, 8, "label", None),
    ]


def test_an_empty_drive_is_labels_and_free_space() -> None:
    """Nothing of length 0 is shown."""
    document = drives(1)
    rows = [(row["role"], row["length"] // MIB) for row in views.regions(document, document.drives[0])]
    assert rows == [("label", 8), ("free", 200), ("label", 8)]


def test_a_drive_that_is_full_has_no_free_region() -> None:
    """And is covered all the same."""
    document, _ = with_lun(drives(2, 65), Layout.RAID1)
    assert [row["role"] for row in views.regions(document, document.drives[0])] == ["label", "meta", "data", "label"]


def test_a_region_s_status_is_its_member_s() -> None:
    """REGIONSTATUS: failed, regenerating, ok. Labels and free space are never failed by a LUN."""
    document, lun = with_lun(drives(3), Layout.RAID5, on=("d0", "d1", "d2"))
    document = document.with_lun(with_states(lun, LOST, REBUILDING))
    found = {
        name: [row["status"] for row in views.regions(document, document.drive(name))] for name in ("d0", "d1", "d2")
    }
    assert found == {
        "d0": ["ok", "failed", "failed", "ok", "ok"],
        "d1": ["ok", "regenerating", "regenerating", "ok", "ok"],
        "d2": ["ok", "ok", "ok", "ok", "ok"],
    }


def test_where_a_member_is_moving_to_is_shown_as_regenerating() -> None:
    """Superblock, log and data; where it serves from until then, all is well."""
    document, lun = with_lun(drives(3), Layout.RAID1, on=("d0", "d1"))
    proposal, _ = replace.propose(
        document, seen(document), lun, document.drive("d0"), document.drive("d2"), uuids(0x9000)
    )
    found = {
        name: [
            (row["role"], row["lun"], row["status"]) for row in views.regions(proposal.document, document.drive(name))
        ]
        for name in ("d0", "d2")
    }
    meta, data = ("meta", "v", "ok"), ("data", "v", "ok")
    ends = ("label", None, "ok"), ("free", None, "ok"), ("label", None, "ok")
    assert found["d0"] == [ends[0], meta, data, *ends[1:]]
    arriving = [("meta", "v", "regenerating")] * 2 + [("data", "v", "regenerating")]
    assert found["d2"] == [ends[0], *arriving, *ends[1:]]


def test_regions_of_a_drive_that_failed_have_failed() -> None:
    """Of a LUN without redundancy too, whose members are never called lost."""
    document, _ = with_lun(drives(2), Layout.RAID0)
    document = provision.fail_drive(document, "d0").document
    data = [row["status"] for row in views.regions(document, document.drive("d0")) if row["role"] == "data"]
    assert data == ["failed"]


Operation = tuple[str, int, int, Layout]
operations = st.lists(
    st.tuples(
        st.sampled_from(["create", "create", "create", "extend", "delete", "fail", "recover"]),
        st.integers(0, 9),
        st.integers(1, 60),
        st.sampled_from(Layout),
    ),
    min_size=3,
    max_size=20,
)


def carried_out(document: Document, operation: Operation, number: int) -> Document:
    """The array after the operation, or as it was if the operation was refused."""
    word, which, mib, layout = operation
    start = 0x1000 * (number + 1)
    try:
        if word == "create":
            return with_lun(document, layout, f"v{number}", mib=mib, start=start)[0]
        if word == "fail":
            return provision.fail_drive(document, document.drives[which % len(document.drives)].name).document
        if not document.luns:
            return document
        lun = document.luns[which % len(document.luns)]
        if word == "extend":
            return provision.extend(document, lun, Bytes(lun.bytes + mib * MIB), uuids(start)).document
        if word == "delete":
            return provision.delete(document, lun, ()).document
        return recover.propose(document, seen(document), lun, None, uuids(start))[0].document
    except BlkrecovError:
        return document


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(40, 150), min_size=2, max_size=6), st.integers(0, 5), operations)
def test_regions_cover_the_whole_drive(sizes: list[int], odd: int, sequence: list[Operation]) -> None:
    """From its first byte to its last, in order, without a gap and without an overlap, whatever was done before; and what is
    free by its regions is what is called free.
    """
    plain = [drive(number, units) for number, units in enumerate(sizes)]
    # A drive's end is where it is: its size is no whole number of allocation units.
    document = array(*(msgspec.structs.replace(item, size=item.size + odd * SECTOR) for item in plain))
    for number, operation in enumerate(sequence):
        document = carried_out(document, operation, number)
    for target in document.drives:
        rows = views.regions(document, target)
        position = 0
        for row in rows:
            assert row["start"] == position
            assert row["length"] > 0
            assert row["role"] in {"label", "meta", "data", "free"}
            assert (row["lun"] is None) == (row["role"] in {"label", "free"})
            position += row["length"]
        assert position == target.size
        assert len({row["id"] for row in rows}) == len(rows)
        free = sum(row["length"] for row in rows if row["role"] == "free")
        assert views.drive_view(document, target)["free"] == (free if target.online else 0)


# Shapes.


def test_a_drive_has_every_key_that_others_rely_on() -> None:
    """Sizes are bytes."""
    document, _ = mirror()
    view = views.drive_view(document, document.drive("d0"))
    assert view.keys() >= DRIVE
    assert view.keys() - DRIVE == {"reason", "health", "failing", "failures", "fault", "task"}
    assert all(row.keys() == REGION for row in view["regions"])
    assert {key: view[key] for key in DRIVE - {"regions"}} == {
        "name": "d0",
        "uuid": "00000000-0000-0000-0000-0000000d0000",
        "path": "/srv/d0",
        "size": 216 * MIB,
        "free": 135 * MIB,
        "status": "online",
        "hot_spare": False,
    }


def test_a_drive_that_is_not_online_has_nothing_free_and_a_reason() -> None:
    """Free space is what could be had."""
    document = provision.fail_drive(drives(1), "d0").document
    view = views.drive_view(document, document.drives[0])
    assert (view["free"], view["status"], view["reason"]) == (0, "failed", "failed by blkrecov drive fail")


@pytest.mark.parametrize(
    ("status", "failing", "health"),
    [
        (DriveStatus.ONLINE, "", "healthy"),
        (DriveStatus.ONLINE, "failed 3 times", "pending_failure"),
        (DriveStatus.NOT_READY, "", "unknown"),
        (DriveStatus.OFFLINE, "failed 3 times", "unknown"),
        (DriveStatus.FAILED, "", "failed"),
        (DriveStatus.FAILED, "failed 3 times", "failed"),
        (DriveStatus.REMOVED, "failed 3 times", "unknown"),
        (DriveStatus.UNKNOWN, "", "unknown"),
    ],
)
def test_a_drive_s_health_goes_with_its_status(status: DriveStatus, failing: str, health: str) -> None:
    """VDS_HEALTH: "failed" with that status only, "pending failure" never with it; "unknown" of a drive that is not in use."""
    target = msgspec.structs.replace(drive(0), status=status, failing=failing, failures=(1, 2, 3))
    view = views.drive_view(array(target), target)
    assert (view["health"], view["failing"], view["failures"]) == (health, failing or None, 3)


def test_a_lun_has_every_key_that_others_rely_on() -> None:
    """More may come, none may go."""
    document, _ = mirror()
    view = shown(document, seen(document, raid_words("AA")))
    assert view.keys() >= LUN


def test_a_lun_has_no_key_that_nobody_knows() -> None:
    """What is shown is relied on, sooner or later: a new key is a decision, and is written here."""
    document, _ = mirror()
    view = shown(document, seen(document, raid_words("AA")))
    more = {"fault_tolerance", "chunk", "region", "mismatches", "sync", "shadow", "incomplete", "exported"}
    assert view.keys() - LUN == more
    assert LUN - view.keys() <= {"fault_tolerant"}
    assert view["page83"].keys() == {"naa", "verified"}
    assert [member.keys() - MEMBER for member in view["members"]] == [{"size"}, {"size"}]
    assert all(member.keys() >= MEMBER for member in view["members"])
    assert [mount.keys() for mount in view["mounts"]] == [{"path", "fstype"}]


def test_a_lun_s_values() -> None:
    """The NAA is what LIO makes of the UUID: 6, the company, the first 25 digits."""
    document, _ = mirror()
    view = shown(document, seen(document, raid_words("AA")))
    del view["members"]
    assert view == view | {
        "name": "v",
        "uuid": "00001002-0000-0000-0000-000000000000",
        "layout": "raid1",
        "size": 64 * MIB,
        "status": "online",
        "health": "healthy",
        "device": "/dev/sda",
        "node": "/dev/mapper/blkrecov-lab-v",
        "page83": {"naa": "60014050000100200000000000000000", "verified": True},
        "chunk": 0,
        "region": MIB,
        "mismatches": None,
        "sync": None,
        "shadow_copy_of": None,
        "mounts": [{"path": "/mnt", "fstype": "ext4"}],
        "task": None,
    }


# Shadow copies.


def shadow_words(document: Document, name: str, words: str) -> Observed:
    """What the kernel says of a differential shadow copy."""
    lun = document.lun(name)
    line = TargetLine(start=Sectors(0), length=Sectors(lun.size), kind="snapshot", params=words)
    live = Live(
        name=f"blkrecov-lab-{name}-shadow",
        uuid=names.dm_uuid(lun.uuid, "shadow"),
        number="253:41",
        table=(line,),
        status=(line,),
        suspended=False,
        inactive=False,
        open_count=1,
    )
    return Observed(devices={live.uuid: live}, backings=seen(document).backings)


def shown_lun(document: Document, observed: Observed, name: str) -> views.Json:
    return views.lun_view(document, observed, document.lun(name), node="", verified=True, mounts=())


def test_a_shadow_copy_is_shown_with_what_its_store_holds() -> None:
    """In bytes; the metadata is in it."""
    document, _ = with_shadow(with_lun(drives(6), Layout.RAID1)[0])
    view = shown_lun(document, shadow_words(document, "s", "2048/32768 256"), "s")
    assert view["shadow_copy_of"] == "v"
    assert view["shadow"] == {
        "kind": "differential",
        "taken": 1000,
        "store": {"size": 16 * MIB, "used": MIB, "chunk": 65536},
        "lost": None,
    }


@pytest.mark.parametrize("words", ["Invalid", None])
def test_a_store_that_does_not_tell_has_no_use(words: str | None) -> None:
    """Overflowed, or not loaded."""
    document, _ = with_shadow(with_lun(drives(6), Layout.RAID1)[0])
    observed = seen(document) if words is None else shadow_words(document, "s", words)
    assert shown_lun(document, observed, "s")["shadow"]["store"]["used"] is None


def test_why_a_shadow_copy_is_lost_is_shown() -> None:
    """And that it has failed."""
    document = with_lost(with_shadow(with_lun(drives(6), Layout.RAID1)[0])[0])
    view = shown_lun(document, seen(document), "s")
    assert (view["shadow"]["lost"], view["status"], view["health"]) == ("its store was full", "failed", "failed")


def test_a_plex_has_no_store() -> None:
    """And when its origin is gone it is told by its UUID."""
    document, _ = with_plex(with_lun(drives(6), Layout.RAID1)[0])
    origin = document.lun("v")
    view = shown_lun(document, seen(document), "p")
    assert view["shadow"] == {"kind": "plex", "taken": 1000, "store": None, "lost": None}
    document = document.without_lun(origin)
    assert shown_lun(document, seen(document), "p")["shadow_copy_of"] == str(origin.uuid)


def test_a_shadow_copy_lives_as_long_as_both_of_its_halves() -> None:
    """What it shows is in its store and in its origin: the weaker of them decides."""
    document, _ = with_lun(drives(10), Layout.RAID6, on=("d0", "d1", "d2", "d3"))
    document, shadow = with_shadow(document, on=("d4", "d5"))
    assert views.tolerance(document, seen(document), shadow) == 1
    assert views.tolerance(document, seen(document, away=("d0", "d1")), shadow) == 0
    document, strong = with_shadow(document, "t", layout=Layout.RAID6, on=("d6", "d7", "d8", "d9"))
    assert views.tolerance(document, seen(document), strong) == 2
    assert views.tolerance(document, seen(document, away=("d0",)), strong) == 1


def test_a_lun_whose_contents_are_not_whole_is_not_ready() -> None:
    """While they are put on it, and when that came to nothing; then it is said why."""
    document, _ = with_lun(drives(6), Layout.RAID1, on=("d0", "d1"))
    document, _ = with_shadow(document)
    observed = seen(document, raid_words("AA"))
    restore = Restore(uuid=UUID(int=5), source=document.lun("s").uuid)
    view = shown(document.with_lun(msgspec.structs.replace(document.lun("v"), restore=restore)), observed)
    assert (view["status"], view["health"], view["incomplete"]) == ("not_ready", "rebuilding", None)
    left = msgspec.structs.replace(document.lun("v"), incomplete="the resync of s:v was cancelled")
    view = shown(document.with_lun(left), observed)
    assert (view["status"], view["health"]) == ("not_ready", "failed")
    assert view["incomplete"] == "the resync of s:v was cancelled"


def test_a_log_is_a_region_of_its_drive() -> None:
    """Of the LUN that is restored; nobody's member, and as good as the drive."""
    document, _ = with_lun(drives(3, units=80), Layout.RAID1, on=("d0", "d1"))
    document, plex = with_plex(document, mib=10, on=("d0",))
    document = document.with_lun(shadows.filled(document, document.lun("v"), plex, uuids(0x9000)))
    rows = [(row["role"], row["lun"], row["status"]) for row in views.regions(document, document.drive("d2"))]
    assert rows == [("label", None, "ok"), ("meta", "v", "ok"), ("free", None, "ok"), ("label", None, "ok")]
    document = provision.fail_drive(document, "d2").document
    assert ("meta", "failed") in [(row["role"], row["status"]) for row in views.regions(document, document.drive("d2"))]


def test_a_task_on_two_luns_is_shown_by_both() -> None:
    """The source has it too."""
    document, lun = with_lun(drives(6), Layout.RAID1)
    document, shadow = with_shadow(document)
    task = Task(
        id=4, kind=TaskKind.RESYNC, lun=lun.uuid, objects=("s:v",), pairs=(Pair(source=shadow.uuid, target=lun.uuid),)
    )
    document = document.with_task(tasks.started(task))
    assert [shown_lun(document, seen(document), name)["task"] for name in ("v", "s")] == [4, 4]


def test_a_cancelled_restore_has_a_code_that_is_a_success() -> None:
    """As IVssAsync has it."""
    task = Task(id=4, kind=TaskKind.RESYNC, lun=UUID(int=1), objects=("s:v",), phases=(Phase.RESTORE,))
    view = views.task_view(tasks.cancelled(tasks.started(task)))
    assert (view["state"], view["code"], view["hresult"]) == ("cancelled", "VSS_S_ASYNC_CANCELLED", "0x0004230B")


def test_a_lun_s_members_are_in_their_order() -> None:
    """Index N is the kernel's leg N."""
    document, _ = with_lun(drives(3), Layout.RAID1, on=("d2", "d0"))
    members = shown(document, seen(document, raid_words("DA")))["members"]
    assert members == [
        {"index": 0, "drive": "d2", "state": "failed", "size": 64 * MIB},
        {"index": 1, "drive": "d0", "state": "in_sync", "size": 64 * MIB},
    ]


def test_a_lun_without_a_disk_has_no_device() -> None:
    """Not exported; its node is what the host uses."""
    document, _ = with_lun(drives(2), Layout.RAID1, exported=False)
    assert shown(document, seen(document, raid_words("AA")))["device"] is None


def test_a_lun_shows_the_kernel_s_progress() -> None:
    """In bytes; the kernel counts sectors."""
    document, _ = mirror()
    view = shown(document, seen(document, raid_words("Aa", "recover", "4096/131072")))
    assert view["sync"] == {"action": "recover", "done": 2 * MIB, "total": 64 * MIB}


def test_a_lun_shows_the_task_that_is_under_way() -> None:
    """By its id; one that has ended is none."""
    document, lun = mirror()
    task = tasks.started(Task(id=7, kind=TaskKind.RECOVER, lun=lun.uuid, objects=("v",)))
    observed = seen(document, raid_words("AA"))
    assert shown(document.with_task(task), observed)["task"] == 7
    assert shown(document.with_task(tasks.completed(task)), observed)["task"] is None


def test_a_task_has_exactly_the_keys_that_others_rely_on() -> None:
    """All of them, at every moment of its life."""
    _, lun = mirror()
    task = Task(id=7, kind=TaskKind.RECOVER, lun=lun.uuid, objects=("v", "d2"), phases=(Phase.REBUILD,))
    for moment in (task, tasks.started(task), tasks.completed(tasks.started(task)), tasks.cancelled(task)):
        view = views.task_view(moment)
        assert view.keys() == TASK
        assert view["bytes"].keys() == {"kernel", "process"}


def test_a_task_s_values() -> None:
    """A failure has its code by name and by number, what happened, and what to do."""
    _, lun = mirror()
    task = tasks.started(
        Task(id=7, kind=TaskKind.RECOVER, lun=lun.uuid, objects=("v", "d2"), bytes_kernel=MIB, bytes_process=8192)
    )
    failed = tasks.failed(task, ObjectFailed("LUN 'v' lost too many members", remedy="bring them back"))
    assert views.task_view(failed) == {
        "id": 7,
        "kind": "recover",
        "objects": ["v", "d2"],
        "state": "failed",
        "paused": False,
        "percent": 0,
        "hresult": "0x80042431",
        "code": "VDS_E_OBJECT_STATUS_FAILED",
        "message": "LUN 'v' lost too many members",
        "remedy": "bring them back",
        "why": "",
        "bytes": {"kernel": 1048576, "process": 8192},
    }


def test_a_task_s_states_are_five_words() -> None:
    """No sixth without telling those who rely on them."""
    assert [state.value for state in TaskState] == ["queued", "in_progress", "completed", "cancelled", "failed"]


@pytest.mark.parametrize("layout", Layout)
def test_what_is_shown_is_json(layout: Layout) -> None:
    """Words, numbers, lists, nothing of ours: it is encoded as it is."""
    document, _ = with_lun(drives(4), layout)
    view = shown(document, seen(document, raid_words("A" * layout.minimum)))
    assert msgspec.json.decode(msgspec.json.encode(view)) == view
    for target in document.drives:
        view = views.drive_view(document, target)
        assert msgspec.json.decode(msgspec.json.encode(view)) == view
