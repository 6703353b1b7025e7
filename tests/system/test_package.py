"""The Debian package on a machine that runs systemd: installed, used, restarted, upgraded, purged and installed again, and an
environment of pip's in between.

What the tests look at is what the guest has noted on the way (tests/system/guest.py).
"""

import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.system.machine import ROOT, Json

# What `vagrant up` does, and the story on the machine's own kernel.
IN_THE_MACHINE = """
set -e
mkfs.ext4 -q /dev/ubda
mount /dev/ubda /var/tmp
scripts/provision "$PWD"
scripts/demo --native
systemctl is-active blkrecovd.service
ls -A /var/tmp
blkrecov array list --json
losetup --list
"""


def test_the_wheel_is_whole(built: tuple[Path, Path]) -> None:
    """It is what the Debian package is made of, and what goes elsewhere."""
    names = zipfile.ZipFile(built[0]).namelist()
    assert {"blkrecov/boot.py", "blkrecov/py.typed", "blkrecov/data/blkrecovd.service"} <= set(names)


def test_the_package_installs_without_a_network(first: Json) -> None:
    """All that it brings is in it; the rest is in every Debian. The services run, with nothing to look after yet."""
    assert first["installed"] == ["active", "active"]
    assert first["enabled"] == ["enabled", "enabled"]
    assert first["group"].startswith("blkrecov:")


def test_nobody_complains_about_what_the_package_brought(first: Json, second: Json) -> None:
    """systemd and udev pass over what they cannot read, with a line in the log."""
    assert first["complaints"] == []
    assert second["complaints"] == []
    assert second["failed"] == []


def test_a_lun_has_a_name_under_dev(first: Json) -> None:
    """The disk, where there is one; the device-mapper node otherwise. A hyphen in a name is a hyphen there too."""
    assert first["links"] == {"array": ["bare", "da-ta", "later", "monday"], "LUN": [True, True], "node": True}


def test_private_layers_have_no_names_but_their_own(first: Json) -> None:
    """No link by contents: what looks like the LUN's file system on a leg must not be mounted."""
    assert len(first["private"]) > 10
    assert first["private"] == {name: [f"/dev/mapper/{name}"] for name in first["private"]}


def test_udev_knows_a_drive_by_its_label(first: Json) -> None:
    """`lsblk --fs` and udisks tell that the loop device is somebody's, and whose."""
    drive = first["drive"]
    found = {key: drive["properties"].get(key) for key in ("ID_SERIAL", "ID_FS_TYPE", "ID_FS_USAGE", "UDISKS_IGNORE")}
    assert found == {
        "ID_SERIAL": f"blkrecov_{drive['uuid']}",
        "ID_FS_TYPE": "blkrecov_drive",
        "ID_FS_USAGE": "raid",
        "UDISKS_IGNORE": "1",
    }
    assert f"/dev/disk/by-id/blkrecov-drive-{drive['uuid']}" in drive["properties"]["DEVLINKS"].split()


def test_a_disk_of_another_machines_lio_may_be_a_drive(first: Json) -> None:
    """Its identity begins as those of LUNs do."""
    found = first["foreign"]
    assert found["ID_WWN_WITH_EXTENSION"].startswith("0x6001405")
    assert (found["ID_FS_TYPE"], found.get("BLKRECOV_LUN")) == ("blkrecov_drive", None)
    assert "/dev/disk/by-id/blkrecov-drive-00112233-4455-6677-8899-aabbccddeeff" in found["DEVLINKS"].split()


def test_udev_does_not_look_at_a_drive_whenever_metadata_is_written(first: Json) -> None:
    """It would start five processes for each of them. A LUN's disk is looked at, for somebody else writes there."""
    assert (first["drive"]["watched"], first["disk_watched"]) == (False, True)


def test_the_service_recovers_within_its_sandbox(first: Json) -> None:
    """A drive fails; the service finds the spare, loads tables, regenerates, and writes it down."""
    assert first["recovered"]["kind"] == "recovery_done"
    assert first["status"] == ["d0", "d3"]


def test_metrics_are_served_within_the_sandbox(first: Json) -> None:
    """On a socket, and on the machine's own address."""
    for text in first["metrics"]:
        assert 'blkrecov_array_up{array="la-b"} 1.0' in text.splitlines()


def test_the_journal_has_what_happened_and_explains_it(first: Json) -> None:
    """Once, by the service that the command asked, with its facts; what it means is in the catalog since the package was
    installed. Nothing is plain text.
    """
    (entry,) = first["told"]
    assert (entry["BLKRECOV_ARRAY"], entry["SYSLOG_IDENTIFIER"], entry["PRIORITY"]) == ("la-b", "blkrecovd", "4")
    assert "Drive d1 of array la-b has failed or is away" in first["explained"]
    assert first["as_text"] == ""


def test_the_service_has_no_mounts_of_its_own(first: Json) -> None:
    """A drive's file that was opened through a mount that is gone has lost its directory: its path would be /d0.img."""
    assert first["mounts"]
    assert first["path"] == "/srv/drives/d0.img"


def test_luns_of_fstab_are_mounted_at_boot(second: Json) -> None:
    """By their names under /dev/disk/by-id, with no word about blkrecov: the disks come while local-fs.target waits for them."""
    assert second["mounted"] == [True, True, True]
    assert second["file"] == "written before the restart\n"
    assert second["states"] == ["active", "active"]


def test_arrays_wait_for_the_file_systems_that_drives_lie_on(second: Json) -> None:
    """Started before, the array would have found none of its drives, and called them lost."""
    assert "srv-drives.mount" in second["generated"]
    assert second["came"]["srv-drives.mount"] < second["began"][second["units"]["outer"]] < second["came"]["data.mount"]


def test_drives_may_lie_on_another_arrays_lun(second: Json) -> None:
    """Each array has a unit of its own: one unit for all would wait for the mount that it has to make possible."""
    came, inner = second["came"], second["units"]["inner"]
    assert second["began"][second["units"]["outer"]] < came["data.mount"] < second["began"][inner]
    assert came[inner] < came["blkrecov-arrays.service"] < came["blkrecovd.service"]
    assert second["nested"] == {"deep": "online"}


def test_an_array_that_does_not_come_keeps_no_other(first: Json, second: Json) -> None:
    """It is told, and its unit has not failed: systemd would stop nothing at the machine's end that has failed to start."""
    assert first["units"] == {"la-b": "active", "inner": "active", "lost": "active"}
    assert "array lost: no drive of array 'lost' was found" in second["told"]
    assert second["failed"] == []


def test_a_shutdown_takes_arrays_out_in_good_order(second: Json) -> None:
    """After LUNs were unmounted, before the drives' file system is: so the next start has nothing to resynchronise."""
    assert second["resyncs"] == 0


def test_an_upgrade_and_a_purge_interrupt_no_write(second: Json) -> None:
    """LUNs are the kernel's. The service is restarted by the upgrade, the arrays' unit is not."""
    assert second["written"]["trouble"] is None
    assert second["written"]["writes"] > 10
    assert second["upgraded"] == {"states": ["active", "active"], "restarted": [False, True]}


def test_a_purge_leaves_the_array(second: Json) -> None:
    """What this machine remembers goes, drives and devices stay, and the next installation finds them by their labels.

    LUNs that are in use stay up, and it is said what becomes of them.
    """
    assert len(second["purged"].pop("said")) == 1
    assert second["purged"] == {"state": [], "drives": True, "devices": True, "program": False}
    assert second["reinstalled"]["known"] == ["la-b"]
    assert second["reinstalled"]["LUNs"]["da-ta"] == "online"


def test_arrays_are_stopped_when_nobody_uses_them_any_more(second: Json) -> None:
    """At a shutdown unmounting goes on beside it, in no order that could be given: the stop waits for each LUN's users."""
    assert "/data" in second["waited"]
    assert second["still_up"]
    assert second["stopped"] == {"status": 0, "devices": [], "loops": "", "service": "active"}
    assert second["again"] == {"states": ["active", "active"], "file": "written before the restart\n"}


def test_an_environment_takes_the_package_s_place(second: Json) -> None:
    """`pip install`, `blkrecov install`, `systemctl enable --now blkrecovd`, and all is as it was with the package."""
    found = second["environment"]
    assert "/etc/systemd/system/blkrecovd.service" in found["written"]
    assert found["states"] == ["active", "active"]
    assert found["group"]
    assert (found["generated"], found["link"]) == (True, True)
    # It answers as soon as it has its name, and is ready when it has looked at its arrays.


def test_an_environment_and_the_package_refuse_each_other(second: Json) -> None:
    """Units below /etc hide those of a package."""
    found = second["environment"]
    assert "VDS_E_OBJECT_EXISTS" in found["refused"]
    assert "run blkrecov uninstall first" in found["refused_package"]


def test_install_writes_nothing_twice(second: Json) -> None:
    """So it may be run after every upgrade."""
    assert second["environment"]["again"] == []


def test_uninstall_leaves_nothing_behind(second: Json) -> None:
    """No file, no directory, no group, no service; but the arrays."""
    found = second["environment"]
    assert sorted(found["removed"]) == sorted(found["written"])
    assert found["left"] == {"files": [], "group": False, "service": "inactive", "devices": True}


@pytest.mark.long
def test_an_environment_brings_arrays_up_at_boot(started: Json) -> None:
    """In time for /etc/fstab, after the file system that drives lie on, and after a shutdown in good order."""
    assert started["states"] == ["active", "active"]
    assert started["mounted"]
    assert started["came"]["srv-drives.mount"] < started["arrays_began"] < started["came"]["data.mount"]
    assert (started["resyncs"], started["failed"]) == (0, [])


@pytest.mark.long
@pytest.mark.usefixtures("built")
def test_a_machine_is_provisioned_and_tells_the_story(tmp_path: Path, figure: Callable[[str], None]) -> None:
    """The package that is there is installed without a network; the story leaves nothing behind, and the service alone."""
    command = [str(ROOT / "scripts/vm"), "--systemd", "--mem", "2G", "--disk", "3G", "--state", str(tmp_path)]
    command += ["--timeout", "1200", "--", "bash", "-c", IN_THE_MACHINE]
    done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-3:] == ["active", "lost+found", "[]"]
    figure(next(line for line in done.stdout.splitlines() if "time of the story" in line).strip())
