"""What the command line refuses: with a code, a cause and a remedy, and with nothing changed."""

import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from blkrecov.errors import Code
from blkrecov.units import MIB
from tests.kernel.lab import TARGET, Answer, Kernel, Lab, Slow, blkrecov, flip, in_sync, lun, made, run, show, tables

GUEST = Path("/run/vm/job")
CONFIGURATION = Path("/etc/modprobe.d/blkrecov-lab.conf")


def picture(lab: Lab) -> tuple[object, ...]:
    """Kernel, files, and what the configuration says; an attempt that was undone may have written that anew."""
    with lab.opened() as array:
        document = array.document
    said = (document.drives, document.luns, document.tasks, document.tombstones, document.running)
    return tables(), Kernel.now(), sorted(lab.directory.iterdir()), said


def refused(lab: Lab, words: tuple[str, ...], status: int = 1) -> Answer:
    """Run a command that has to be refused, with JSON, and see that it is told well and nothing has changed."""
    before = picture(lab)
    answer = blkrecov(lab, *words, "--json")
    assert answer.status == status, answer
    assert answer.out == ""
    error = answer.error
    assert set(error) == {"code", "hresult", "message", "remedy"}
    assert error["hresult"] == Code[error["code"]].hresult_text
    assert error["message"]
    assert error["remedy"]
    assert "Traceback" not in answer.err
    assert picture(lab) == before
    return answer


# First the tests with an array of their own: two of them at a time would see each other.


def test_a_spare_that_serves_the_lun_already_is_refused(lab: Lab) -> None:
    """Two members on one drive would be lost together; a spare that has failed, or is too small, is no spare either."""
    lab.create(3)
    with lab.opened() as array:
        lab.add(array, "small", size=16 * MIB, spare=True)  # type: ignore[arg-type]
        lun(array, "vol", "raid1", 14 * MIB, drives=("d0", "d1"), exported=False)
        in_sync(array, "vol")
        array.fail_drive("d0")
    for spare, code in (("d1", "E_INVALIDARG"), ("d0", "VDS_E_NOT_ENOUGH_DRIVE"), ("small", "VDS_E_NOT_ENOUGH_SPACE")):
        error = refused(lab, ("recover", "vol", "--spare", spare)).error
        assert (error["code"], f"'{spare}'" in error["message"]) == (code, True), error
    assert refused(lab, ("drive", "fail", "d0")).error["code"] == "VDS_E_INVALID_OPERATION"


def test_an_array_without_drives_refuses_luns(lab: Lab) -> None:
    """From nothing: each error says what to do next."""
    assert blkrecov(lab, "lun", "list", "--json").error["remedy"] == "make one with: blkrecov array create NAME"
    assert blkrecov(lab, "array", "create", "lab").status == 0
    answer = blkrecov(lab, "lun", "create", "vol", "--layout", "linear", "--size", "4M", "--json")
    assert answer.error["code"] in ("VDS_E_NOT_ENOUGH_DRIVE", "VDS_E_NOT_ENOUGH_SPACE")
    assert "blkrecov drive add" in answer.error["remedy"]


@contextmanager
def hidden(*modules: str) -> Iterator[None]:
    """A kernel without these modules, for a while."""
    assert GUEST.exists(), "modules are taken away in the guest only, never from a machine that somebody uses"
    CONFIGURATION.write_text("".join(f"install {module} /bin/false\n" for module in modules))
    fabric = TARGET / "loopback"
    try:
        if "tcm_loop" in modules and fabric.exists():
            fabric.rmdir()
        run("rmmod", *modules)
        yield
    finally:
        CONFIGURATION.unlink()
        run("modprobe", "-a", *modules)


def test_a_missing_raid_module_is_named(lab: Lab) -> None:
    """A kernel without dm-raid: which one, and how to get it; the LUN's other devices are taken back."""
    lab.create(2)
    with hidden("dm_raid"):
        words = ("lun", "create", "vol", "--layout", "raid1", "--size", "4M", "--json")
        before = (tables(), Kernel.now())
        error = blkrecov(lab, *words).error
        assert (error["code"], "raid" in error["message"]) == ("VDS_E_NOT_SUPPORTED", True)
        assert "dm-raid" in error["remedy"]
        assert (tables(), Kernel.now()) == before
        assert blkrecov(lab, "lun", "list", "--json").json == []
    assert blkrecov(lab, *words).status == 0


def test_a_missing_export_module_is_named(lab: Lab) -> None:
    """Without tcm_loop there are no SCSI disks, but LUNs without one can be made."""
    lab.create(2)
    with hidden("tcm_loop"):
        words = ("lun", "create", "vol", "--layout", "raid1", "--size", "4M", "--json")
        before = (tables(), Kernel.now())
        error = blkrecov(lab, *words).error
        assert (error["code"], "tcm_loop" in error["message"]) == ("VDS_E_NOT_SUPPORTED", True)
        assert (tables(), Kernel.now()) == before
        assert blkrecov(lab, *words, "--no-export").status == 0
    assert blkrecov(lab, "lun", "delete", "vol").status == 0


def test_a_full_file_system_below_the_drives_undoes_a_creation(slow: Slow, lab: Lab) -> None:
    """Drives are sparse: what cannot be written is told as such, and what there was stays as it was."""
    lab.create(0)
    with lab.opened() as array:
        for name in ("d0", "d1"):
            array.add_drive(str(slow.directory / name), size=slow.drive, name=name, spare=False, force=False)
            lab.drives.append(name)
        lun(array, "old", "raid1", 4 * MIB, exported=False)
        in_sync(array, "old")
    filler = slow.directory / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(MIB))
        except OSError:
            pass
        os.fsync(file.fileno())
    before = (tables(), Kernel.now())
    error = blkrecov(lab, "lun", "create", "vol", "--layout", "raid1", "--size", "4M", "--json").error
    assert error["code"] in ("VDS_E_IO_ERROR", "VDS_E_DISK_CONFIGURATION_UPDATE_FAILED", "VDS_E_PROVIDER_FAILURE")
    assert (tables(), Kernel.now()) == before
    filler.unlink()
    with lab.opened() as array:
        assert [item.name for item in array.document.luns] == ["old"]
        assert show(array, "old")["status"] == "online"


# From here on, one array for all.


@pytest.fixture(scope="module")
def standing(ext4: Path) -> Iterator[Lab]:
    """An array that no test of this module may change: three drives, a hot spare, a mirror and a striped LUN."""
    with made(ext4) as lab:
        lab.create(3, spares=1)
        with lab.opened() as array:
            lun(array, "vol", "raid1", 4 * MIB, drives=("d0", "d1"), exported=False)
            lun(array, "bare", "raid0", 4 * MIB, drives=("d1", "d2"), exported=False)
            in_sync(array, "vol")
            lun(array, "gone", "raid1", 4 * MIB, exported=False)
            array.carry_out(array.propose_delete("gone"))
        yield lab


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("lun show nobody", "VDS_E_OBJECT_NOT_FOUND", "'nobody'"),
        ("lun show gone", "VDS_E_OBJECT_DELETED", "'gone'"),
        ("lun delete nobody", "VDS_E_OBJECT_NOT_FOUND", "'nobody'"),
        ("lun extend gone --size 1G", "VDS_E_OBJECT_DELETED", "'gone'"),
        ("recover nobody", "VDS_E_OBJECT_NOT_FOUND", "'nobody'"),
        ("scrub nobody", "VDS_E_OBJECT_NOT_FOUND", "'nobody'"),
        ("drive show d9", "VDS_E_OBJECT_NOT_FOUND", "'d9'"),
        ("drive fail d9", "VDS_E_OBJECT_NOT_FOUND", "'d9'"),
        ("drive remove d9", "VDS_E_OBJECT_NOT_FOUND", "'d9'"),
        ("drive spare d9", "VDS_E_OBJECT_NOT_FOUND", "'d9'"),
        ("task show 99", "VDS_E_OBJECT_NOT_FOUND", "99"),
        ("task wait 99", "VDS_E_OBJECT_NOT_FOUND", "99"),
        ("task cancel 99", "VDS_E_OBJECT_NOT_FOUND", "99"),
        ("page83 show nobody", "VDS_E_OBJECT_NOT_FOUND", "'nobody'"),
        ("lun list --array nobody", "VDS_E_OBJECT_NOT_FOUND", "'nobody'"),
        ("array create lab", "VDS_E_OBJECT_EXISTS", "'lab'"),
        ("array create a/b", "E_INVALIDARG", "'a/b'"),
        ("lun create vol --layout raid1 --size 4M", "VDS_E_OBJECT_EXISTS", "'vol'"),
        ("lun create drive --layout raid1 --size 4M", "E_INVALIDARG", "'drive'"),
        ("lun create .. --layout raid1 --size 4M", "E_INVALIDARG", "'..'"),
        ("lun create x --layout raid1 --size 4K", "E_INVALIDARG", "4096"),
        ("lun create x --layout raid1 --size big", "E_INVALIDARG", "'big'"),
        ("lun create x --layout raid1 --size -4M", "E_INVALIDARG", "'-4M'"),
        ("lun create x --layout raid1 --size 0", "E_INVALIDARG", "'0'"),
        ("lun create x --layout raid1 --size 900P", "VDS_E_NOT_ENOUGH_SPACE", ""),
        ("lun create x --layout raid6 --size 4M", "VDS_E_NOT_ENOUGH_DRIVE", "there are 3"),
        ("lun create x --layout raid1 --members 9 --size 4M", "VDS_E_NOT_ENOUGH_DRIVE", "there are 3"),
        ("lun create x --layout raid5 --members 2 --size 4M", "E_INVALIDARG", "2 members"),
        ("lun create x --layout raid1 --drives d0,d0 --size 4M", "E_INVALIDARG", "twice"),
        ("lun create x --layout raid1 --drives d0,d9 --size 4M", "VDS_E_OBJECT_NOT_FOUND", "'d9'"),
        ("lun create x --layout raid1 --drives d0,d1 --members 3 --size 4M", "E_INVALIDARG", "2 drives"),
        ("lun create x --layout raid1 --size 300M", "VDS_E_NOT_ENOUGH_SPACE", ""),
        ("lun extend vol --size 4M", "E_INVALIDARG", "'vol'"),
        ("lun extend vol --size 2M", "E_INVALIDARG", "'vol'"),
        ("lun extend vol --size 3G", "VDS_E_NOT_ENOUGH_SPACE", "'d0'"),
        ("recover bare", "VDS_E_INVALID_OPERATION", "raid0"),
        ("recover bare --spare s0", "VDS_E_INVALID_OPERATION", "raid0"),
        ("scrub bare", "VDS_E_INVALID_OPERATION", "raid0"),
        ("recover vol --spare d9", "VDS_E_OBJECT_NOT_FOUND", "'d9'"),
        ("drive add {new} --size 1M", "E_INVALIDARG", "1048576"),
        ("drive add {new} --size 16777217", "E_INVALIDARG", "4096"),
        ("drive add {new} --size lots", "E_INVALIDARG", "'lots'"),
        ("drive add {new}", "VDS_E_PATH_NOT_FOUND", "does not exist"),
        ("drive add {new} --size 32M --name d0", "VDS_E_OBJECT_EXISTS", "'d0'"),
        ("drive add {new} --size 32M --name a/b", "E_INVALIDARG", "'a/b'"),
        ("drive add {directory}/no/such --size 32M", "VDS_E_PATH_NOT_FOUND", "no/such"),
        ("drive add {directory}", "E_INVALIDARG", "directory"),
        ("drive add /dev/null", "E_INVALIDARG", "character device"),
        ("drive add {directory}/d0", "VDS_E_DEVICE_IN_USE", "/dev/loop"),
        ("drive add {directory}/d0 --force", "VDS_E_DEVICE_IN_USE", "/dev/loop"),
        ("drive add /dev/mapper/blkrecov-lab-vol --force", "E_INVALIDARG", "stands on drives"),
        ("drive add /dev/ubda --force", "VDS_E_DEVICE_IN_USE", "mounted"),
    ],
)
def test_refused_with_code_cause_and_remedy(standing: Lab, words: str, code: str, said: str) -> None:
    """Programs act on the code, people on the sentence, and neither finds anything half done."""
    filled = words.format(new=standing.directory / "new", directory=standing.directory)
    error = refused(standing, tuple(filled.split())).error
    assert (error["code"], said in error["message"]) == (code, True), error


@pytest.mark.parametrize(
    "words",
    [
        "frobnicate",
        "lun",
        "lun create",
        "lun create x --size 4M",
        "lun create x --layout raid7 --size 4M",
        "lun create x --layout raid1 --members 0 --size 4M",
        "task show one",
        "recover",
        "drive add",
        "lun show vol --frob",
    ],
)
def test_usage_has_a_status_of_its_own(standing: Lab, words: str) -> None:
    """A mistyped command is 2, a refused one 1, so that scripts can tell."""
    answer = blkrecov(standing, *words.split())
    assert (answer.status, answer.out) == (2, "")
    assert answer.err


def test_an_error_for_people_has_the_same_parts(standing: Lab) -> None:
    """Code, number, what and why, and what to do, on standard error."""
    answer = blkrecov(standing, "lun", "show", "nobody")
    assert (answer.status, answer.out) == (1, "")
    first, second = answer.err.splitlines()
    assert first == "blkrecov: VDS_E_OBJECT_NOT_FOUND (0x80042405): array 'lab' has no LUN 'nobody'"
    assert second.strip().startswith("what to do: ")


def hold_ext4(path: Path) -> None:
    run("mkfs.ext4", "-q", "-F", str(path))


def hold_partitions(path: Path) -> None:
    """A PC's table with one partition of 8 MiB from sector 2048 on."""
    entry = struct.pack("<B3sB3sII", 0, b"", 0x83, b"", 2048, 16384)
    with path.open("r+b") as file:
        file.seek(446)
        file.write(entry.ljust(64, b"\0") + b"\x55\xaa")


def hold_text(path: Path) -> None:
    with path.open("r+") as file:
        file.write("somebody's notes")


@pytest.mark.parametrize(
    ("hold", "said"),
    [(hold_ext4, "ext4"), (hold_partitions, "partition table (dos)"), (hold_text, "unknown kind")],
    ids=str,
)
def test_what_a_file_holds_goes_only_by_force(standing: Lab, hold: object, said: str) -> None:
    """The error says what would be destroyed; with --force it is, and the drive is as good as a new one."""
    assert callable(hold)
    path = standing.directory / "held"
    run("truncate", "--size=20M", str(path))
    try:
        hold(path)
        before = path.read_bytes()
        error = refused(standing, ("drive", "add", str(path))).error
        assert (error["code"], said in error["message"]) == ("VDS_E_DISK_NOT_EMPTY", True), error
        assert path.read_bytes() == before
        answer = blkrecov(standing, "drive", "add", str(path), "--force", "--name", "forced", "--json")
        assert (answer.status, answer.json["status"], answer.json["free"]) == (0, "online", 16 * MIB)
        assert blkrecov(standing, "drive", "remove", "forced").status == 0
    finally:
        path.unlink()


def test_another_arrays_drive_is_taken_over_only_by_force(standing: Lab) -> None:
    """A label names the array and the drive that would be lost."""
    other = Lab(standing.directory / "other", name="other")
    other.directory.mkdir()
    other.create(1)
    other.stop()
    path = other.path("d0")
    error = refused(standing, ("drive", "add", str(path), "--name", "taken", "--array", "lab")).error
    assert error["code"] == "VDS_E_DISK_NOT_EMPTY"
    assert "the drive d0 of the array other" in error["message"]
    words = ("drive", "add", str(path), "--name", "taken", "--force", "--array", "lab")
    assert blkrecov(standing, *words).status == 0
    assert blkrecov(standing, "drive", "remove", "taken", "--array", "lab").status == 0


def test_a_file_that_is_attached_or_locked_is_never_taken(standing: Lab) -> None:
    """In use is in use, --force or not: another loop device, or another process's lock."""
    path = standing.directory / "busy"
    run("truncate", "--size=20M", str(path))
    loop = run("losetup", "--find", "--show", str(path))
    try:
        for force in ((), ("--force",)):
            error = refused(standing, ("drive", "add", str(path), *force)).error
            assert (error["code"], loop in error["message"]) == ("VDS_E_DEVICE_IN_USE", True)
    finally:
        run("losetup", "--detach", loop)
        path.unlink()


def test_a_damaged_label_is_told_when_the_file_is_to_become_a_drive(standing: Lab) -> None:
    """One bit of a label: still nobody's to overwrite without being asked."""
    other = Lab(standing.directory / "damaged", name="damaged")
    other.directory.mkdir()
    other.create(1)
    other.stop()
    flip(other.path("d0"), 60)
    error = refused(standing, ("drive", "add", str(other.path("d0")), "--array", "lab")).error
    assert (error["code"], "damaged" in error["message"]) == ("VDS_E_DISK_NOT_EMPTY", True)
    other.path("d0").unlink()


def test_not_root_is_told(standing: Lab) -> None:
    """Every command needs root, and says so before it touches anything."""
    before = picture(standing)
    for words in (["lun", "list"], ["array", "create", "mine"], ["drive", "fail", "d0"]):
        done = subprocess.run(
            [sys.executable, "-m", "blkrecov.cli.main", *words, "--json"],
            env={**os.environ, **standing.environment},
            user=65534,
            group=65534,
            extra_groups=[],
            capture_output=True,
            text=True,
            check=False,
        )
        answer = Answer(done.returncode, done.stdout, done.stderr)
        assert (answer.status, answer.error["code"], answer.out) == (1, "E_ACCESSDENIED", "")
    assert picture(standing) == before
