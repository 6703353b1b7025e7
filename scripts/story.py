"""What scripts/demo shows, told and checked in the guest. Everything is done by the commands that are printed."""

import hashlib
import json
import os
import resource
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from blkrecov.units import MIB, format_size

# On a machine of its own, or in a directory of somebody's machine.
HOME = Path(os.environ["BLKRECOV_DEMO"]) if "BLKRECOV_DEMO" in os.environ else None
DRIVES = HOME / "drives" if HOME else Path("/srv/drives")
MOUNT = HOME / "data" if HOME else Path("/mnt/data")
NOTES = HOME or Path("/run")
ENOUGH_FILES = 3000
LARGEST = 512 * 1024
# Where thousands of real files are, on any Debian machine.
SOURCES = ("/usr/sbin", "/usr/bin", "/usr/share/perl", "/usr/share/doc", "/usr/share/zoneinfo", "/usr/share/man")
STOP = NOTES / "copied-enough"
STATE = Path(os.environ.get("BLKRECOV_STATE", "/var/lib/blkrecov"))
DEADLINE_S = 120

console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)
started = time.monotonic()
checks: list[tuple[str, bool, str]] = []


def chapter(title: str, *sentences: str) -> None:
    console.print()
    console.rule(f"[bold]{title}", align="left", style="blue")
    for sentence in sentences:
        console.print(Padding(sentence, (0, 0, 0, 2)))


def prompt(command: str) -> None:
    console.print(f"[bold green]#[/] [bold]{command}", soft_wrap=True)


def run(command: str, *, quiet: bool = False) -> None:
    """Show a command as a user would type it, and run it. A failure ends the story."""
    if not quiet:
        prompt(command)
    # One stream, so that words and progress stay in their order wherever the output goes.
    status = subprocess.run(
        ["sh", "-c", command], stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT, check=False
    ).returncode
    if status:
        console.print(f"[bold red]that was not to happen: exit status {status}")
        sys.exit(1)


def answer(command: str) -> str:
    """What a command prints; not shown."""
    return subprocess.run(["sh", "-c", command], check=True, capture_output=True, text=True).stdout


def check(claim: str, truth: bool, evidence: str) -> None:
    checks.append((claim, truth, evidence))


def source_files() -> Iterator[Path]:
    """Regular files of some size, until there are enough of them."""
    count = 0
    for top in SOURCES:
        for folder, folders, names in os.walk(top):
            folders.sort()
            for name in sorted(names):
                path = Path(folder, name)
                if path.is_symlink() or not path.is_file() or path.stat().st_size > LARGEST:
                    continue
                yield path
                count += 1
                if count >= ENOUGH_FILES:
                    return


def checksums(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def written_bytes(device: str) -> int:
    """From the kernel's own count of a block device: Documentation/block/stat.rst, field 7."""
    return int(Path(f"/sys/block/{device}/stat").read_text().split()[6]) * 512


def own_block_io() -> int:
    """Bytes of block I/O that our commands have caused themselves, as the kernel accounts for them."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (usage.ru_inblock + usage.ru_oublock) * 512


def page83(device: str) -> str:
    return next(word for word in answer(f"sg_vpd --page=di {device}").split() if word.startswith("0x6"))


def main() -> None:
    kernel = os.uname()
    where = f"in {HOME}" if HOME else "a machine made for this story and thrown away after it"
    console.print(f"[bold]blkrecov[/] on Linux {kernel.release}, {where}")
    if not HOME:
        run("mkfs.ext4 -q /dev/ubda && mkdir -p /srv && mount /dev/ubda /srv", quiet=True)
    run(f"mkdir {DRIVES} {MOUNT}", quiet=True)

    chapter("1. An array of six drives", "Drives are files of 256 MiB. One of them is a hot spare.")
    run("blkrecov array create demo")
    for number in range(6):
        spare = " --spare" if number == 5 else ""
        run(f"blkrecov drive add {DRIVES}/d{number}.img --size 256M{spare}")

    chapter("2. A LUN with parity, as a SCSI disk", "Any four drives hold its data; any one of them may be lost.")
    run("blkrecov lun create data --layout raid5 --size 600M --members 4")
    run("blkrecov lun show data")
    lun = json.loads(answer("blkrecov lun show data --json"))
    link = f"/dev/disk/by-id/wwn-0x{lun['page83']['naa']}"
    before = page83(link)
    prompt(f"sg_vpd --page=di {link} | head -4")
    run(f"sg_vpd --page=di {link} | head -4", quiet=True)
    check("page 83 is what the array says", before == f"0x{lun['page83']['naa']}", before)

    chapter("3. Real files on it")
    run(f"mkfs.ext4 -q {link}")
    run(f"mount {link} {MOUNT}")
    files = list(source_files())
    half = len(files) // 2
    lists = [NOTES / "first.list", NOTES / "second.list"]
    for target, part in zip(lists, (files[:half], files[half:]), strict=True):
        target.write_text("".join(f"{path}\0" for path in part))
    prompt(f"cp the first {half} of {len(files)} files below /usr to {MOUNT}, and take their checksums")
    copy = f"xargs -0 cp --parents -t {MOUNT} <"
    run(f"{copy} {lists[0]}", quiet=True)
    console.print(f"  {half} files, {format_size(sum(path.stat().st_size for path in files[:half]))}")

    chapter("4. A drive fails while the rest is being written", "The copy goes on; nobody above the array notices.")
    # Over and over, so that files are written at that moment however fast the machine is.
    loop = f"until [ -e {STOP} ]; do {copy} {lists[1]} || exit; done"
    prompt(f"cp the other {len(files) - half} files to {MOUNT}, over and over, in the background")
    second = subprocess.Popen(["sh", "-c", loop], stdin=subprocess.DEVNULL)
    victim = lun["members"][1]["drive"]
    run(f"blkrecov drive fail {victim}")
    still_writing = second.poll() is None
    STOP.touch()
    check("a drive failed while files were written", still_writing, "the copy was under way when the drive was gone")
    check(
        "the copy did not notice",
        second.wait() == 0,
        f"cp of {len(files) - half} files: exit status {second.returncode}",
    )
    run("sync", quiet=True)
    original = {str(path).lstrip("/"): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    degraded = json.loads(answer("blkrecov lun show data --json"))
    run("blkrecov lun show data")
    check(
        "the LUN was degraded and online",
        (degraded["status"], degraded["health"]) == ("online", "failed_redundancy"),
        f"{degraded['status']}, {degraded['health']}",
    )

    chapter(
        "5. Recover", "The hot spare takes the lost drive's place; the kernel computes its contents from the others."
    )
    spare_loop = Path(answer(f"losetup --associated {DRIVES}/d5.img --noheadings --output NAME").strip()).name
    spare_before, own_before, recover_began = written_bytes(spare_loop), own_block_io(), time.monotonic()
    run("blkrecov recover data")
    recover_s = time.monotonic() - recover_began
    own_io, spare_written = own_block_io() - own_before, written_bytes(spare_loop) - spare_before
    run("blkrecov lun show data")
    lun = json.loads(answer("blkrecov lun show data --json"))
    task = json.loads(answer("blkrecov task list --json"))[-1]
    released = json.loads(answer(f"blkrecov drive show {victim} --json"))["regions"]
    check("the LUN is healthy", lun["health"] == "healthy", lun["health"])
    check(
        "the lost member's extents are released",
        not any(region["lun"] for region in released),
        f"none on drive {victim}",
    )

    chapter("6. Nothing was lost", "The file system is mounted anew, so that what is read comes from the drives.")
    run(f"umount {MOUNT}")
    run("echo 3 > /proc/sys/vm/drop_caches", quiet=True)
    run(f"mount {link} {MOUNT}")
    prompt("sha256sum of every file, compared with the originals below /usr")
    found = {name: digest for name, digest in checksums(MOUNT).items() if not name.startswith("lost+found")}
    console.print(
        f"  {len(found)} files read, {sum(found.get(name) == digest for name, digest in original.items())} are the same"
    )
    check("every file is what it was", found == original, f"{len(found)} checksums")
    run(f"umount {MOUNT}")
    run(f"e2fsck -f -n {link} 2>&1 | tail -1")
    after = page83(link)
    check("page 83 is what it was", after == before, after)
    run("blkrecov scrub data")
    scrubbed = json.loads(answer("blkrecov lun show data --json"))
    check("parity agrees everywhere", scrubbed["mismatches"] == 0, f"scrub: {scrubbed['mismatches']} mismatches")

    member = lun["members"][1]["size"]
    moved, own = task["bytes"]["kernel"], task["bytes"]["process"]
    check(
        "the kernel moved at least one member",
        moved >= member and spare_written >= member,
        f"{format_size(moved)} by the task, {format_size(spare_written)} by /sys/block/{spare_loop}/stat",
    )
    check(
        "our process moved kilobytes",
        own < 2 * MIB and own_io < 4 * MIB,
        f"{format_size(own)} by the task, {format_size(own_io)} by the kernel's accounting of the command",
    )
    chapter(
        "7. Another drive breaks, and nobody is there", "The monitor sleeps until the kernel tells of a failed request."
    )
    run(f"blkrecov drive add {DRIVES}/d6.img --size 256M --spare")
    run(f"mount {link} {MOUNT}")
    prompt("blkrecov monitor &")
    monitor = subprocess.Popen(["blkrecov", "monitor"])
    wait_for(lambda: any(STATE.glob("*.bell")), "the monitor")
    broken = lun["members"][2]["drive"]
    prompt(f"from now on every request to drive {broken} ends in an error; somebody writes a file")
    port = f"blkrecov-demo-drive-{broken}"
    sectors = answer(f"blockdev --getsz /dev/mapper/{port}").strip()
    run(f"dmsetup suspend --noflush --nolockfs {port}", quiet=True)
    run(f"dmsetup load {port} --table '0 {sectors} error' && dmsetup resume {port}", quiet=True)
    run(f"head -c 4M /dev/urandom > {MOUNT}/written-while-nobody-was-there && sync", quiet=True)
    wait_for(lambda: told("recovery_done") > 1, "the recovery")
    monitor.terminate()
    check("the monitor ended when it was told to", monitor.wait() == 0, f"exit status {monitor.returncode}")
    run("blkrecov events -n 4")
    lun = json.loads(answer("blkrecov lun show data --json"))
    check("it was recovered from without a command", lun["health"] == "healthy", f"now on {drives_of(lun)}")

    chapter("8. A drive leaves before it breaks", "Copied underneath the RAID, so that redundancy never drops.")
    leaving = lun["members"][0]["drive"]
    run(f"blkrecov drive replace {leaving}")
    lun = json.loads(answer("blkrecov lun show data --json"))
    check(
        "the drive can be taken away", leaving not in drives_of(lun), f"{leaving} is empty; data is on {drives_of(lun)}"
    )
    run(f"umount {MOUNT} && echo 3 > /proc/sys/vm/drop_caches && mount {link} {MOUNT}", quiet=True)
    found = checksums(MOUNT)
    check("and every file is still what it was", original.items() <= found.items(), f"{len(original)} checksums")

    chapter(
        "9. A moment is kept, and put back",
        "A shadow copy of the LUN; then somebody ruins it; then the kernel copies what differs back, inside the array.",
    )
    run("blkrecov snapshot create data monday")
    monday = json.loads(answer("blkrecov lun show monday --json"))
    check(
        "the shadow copy is a disk of its own, which nobody can write to",
        page83(monday["device"]) != before and answer(f"blockdev --getro {monday['device']}").strip() == "1",
        page83(monday["device"]),
    )
    kept = checksums(MOUNT)
    prompt("every tenth file is overwritten with noise, every eleventh is deleted")
    for number, name in enumerate(sorted(kept)):
        if number % 11 == 0:
            (MOUNT / name).unlink()
        elif number % 10 == 0:
            (MOUNT / name).write_bytes(os.urandom((MOUNT / name).stat().st_size))
    run(f"umount {MOUNT}")
    run("blkrecov resync monday:data --verify")
    restored = json.loads(answer("blkrecov task list --json"))[-1]["bytes"]
    run(f"mount {link} {MOUNT}")
    check("every file is what it was on monday", checksums(MOUNT) == kept, f"{len(kept)} checksums")
    check(
        "only what differed was copied, and not by us",
        restored["kernel"] < lun["size"] // 4 and restored["process"] < 2 * MIB,
        f"{format_size(restored['kernel'])} by the kernel, {format_size(restored['process'])} by our process",
    )
    check("page 83 of the restored LUN is still what it was", page83(link) == before, before)

    chapter(
        "10. Two drives go, and come back",
        "With the second the LUN has failed. No write was acknowledged after that, so nothing is lost when that one is back.",
    )
    earlier, last = drives_of(lun).split()[:2]
    run(f"blkrecov drive fail {earlier}")
    (MOUNT / "late").write_bytes(os.urandom(MIB))
    os.sync()
    kept = checksums(MOUNT)
    run(f"umount {MOUNT} && blkrecov drive fail {last}")
    without = json.loads(answer("blkrecov lun show data --json"))["status"]
    run(f"blkrecov drive reconnect {earlier}")
    run(f"blkrecov drive reconnect {last}")
    back = json.loads(answer("blkrecov task list --json"))[-1]["bytes"]
    lun = json.loads(answer("blkrecov lun show data --json"))
    run(f"mount {link} {MOUNT}")
    check(
        "a LUN that had failed is whole again",
        (without, lun["health"]) == ("failed", "healthy") and checksums(MOUNT) == kept,
        f"{len(kept)} checksums",
    )
    check(
        "only what its first drive had missed was regenerated",
        0 < back["kernel"] < lun["size"] // 8,
        format_size(back["kernel"]),
    )
    run(f"umount {MOUNT}")
    run("blkrecov drive reconnect d1")
    run("blkrecov status")
    summary(moved, own, recover_s)


def drives_of(lun: dict[str, Any]) -> str:
    return " ".join(member["drive"] for member in lun["members"])


def told(kind: str) -> int:
    """How many events of a kind there are."""
    log = STATE / "events.jsonl"
    return log.read_text().count(f'"kind":"{kind}"') if log.exists() else 0


def wait_for(truth: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not truth():
        if time.monotonic() > deadline:
            raise SystemExit(f"{what} did not come within {DEADLINE_S:g} s")
        time.sleep(0.1)


def summary(moved: int, own: int, recover_s: float) -> None:
    console.print()
    table = Table(title="what was claimed, and what was seen", title_justify="left", show_lines=False)
    table.add_column("claim")
    table.add_column("", justify="center")
    table.add_column("evidence", overflow="fold")
    for claim, truth, evidence in checks:
        table.add_row(claim, "[green]yes[/]" if truth else "[bold red]NO[/]", evidence)
    table.add_section()
    table.add_row("bytes that the kernel moved to recover", "", format_size(moved))
    table.add_row("bytes that our process read and wrote for it", "", format_size(own))
    table.add_row("time of the recovery", "", f"{recover_s:.1f} s")
    table.add_row("time of the story", "", f"{time.monotonic() - started:.0f} s")
    console.print(table)


if __name__ == "__main__":
    main()
    well = all(truth for _claim, truth, _evidence in checks)
    if sys.argv[1:] == ["--keep-shell"]:
        console.print("The array is yours. Leave with: exit")
        subprocess.run([os.environ.get("SHELL") or shutil.which("bash") or "sh", "-i"], check=False)
    else:
        subprocess.run(shlex.split("blkrecov array stop"), check=False, stdout=subprocess.DEVNULL)
    sys.exit(0 if well else 1)
