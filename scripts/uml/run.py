"""Boot the user-mode Linux kernel, run one command in it as root, and end as the command ended.

The guest's root is the host's file system, read through hostfs and covered by an overlay in the guest's memory: the working
tree and the virtual environment are where they are on the host, and nothing that the command does reaches the host, except
what it writes to the block devices given by --disk and to the directory given by --out.

Channels between the two sides:

    kernel console    -> a log file, shown only when something went wrong
    command's stdout  -> guest tty1 -> our standard output
    command's stderr  -> guest tty2 -> our standard error
    exit status       -> a file in the job directory, which the guest sees through a second hostfs mount

A guest that is killed has lost its power: its memory is gone, the bytes that its kernel had handed to a --disk stay. That is
what SIGTERM to this program does.
"""

import argparse
import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
KERNEL = "linux.uml"
MODULES = Path("/usr/lib/uml/modules")

# Exit statuses of our own. They are those of timeout(1) and of shells, well away from what commands use.
TIMED_OUT = 124
GUEST_DIED = 125

# The last of the ubd driver's devices (arch/um/drivers/ubd_kern.c, MAX_DEV), so that --disk has the first.
KEPT = 15

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
# Environment that the command sees: the caller's ways with terminals and tests, and nothing else of the host's.
PASSED_ON = ("TERM", "COLUMNS", "CI", "NO_COLOR", "FORCE_COLOR", "LANG")
PASSED_ON_PREFIXES = ("BLKRECOV_", "PYTEST_")
GUEST_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def parse_size(text: str) -> int:
    """Bytes of a size such as 512M. Raises ArgumentTypeError, which argparse shows."""
    number, unit = text[:-1], text[-1:].upper()
    if unit.isdigit():
        number, unit = text, ""
    if not number.isdigit() or unit not in UNITS or not int(number):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write 512M or 2G")
    return int(number) * UNITS[unit]


def parse_arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/vm",
        usage="scripts/vm [--native] [--mem 2G] [--disk SIZE ...] [--systemd] [--keep SIZE] [--state DIR] [--out DIR] "
        "[--suite NAME] [--timeout S] -- COMMAND...",
        description="Run COMMAND as root on a real kernel with device-mapper, and exit with its status.",
        epilog="Exit status: the command's; 124 when the time ran out; 125 when the guest ended without the command's status.",
    )
    parser.add_argument(
        "--native", action="store_true", help="run on this machine's own kernel, where it has device-mapper"
    )
    parser.add_argument(
        "--mem", type=parse_size, default=parse_size("2G"), metavar="SIZE", help="guest memory (default 2G)"
    )
    parser.add_argument(
        "--disk",
        type=parse_size,
        nargs="+",
        action="extend",
        default=[],
        metavar="SIZE",
        help="block devices /dev/ubda, /dev/ubdb, ...: sparse files in the state directory that keep their contents",
    )
    parser.add_argument(
        "--systemd",
        action="store_true",
        help="boot systemd, run the command when multi-user.target is reached, and shut down in good order",
    )
    parser.add_argument(
        "--keep",
        type=parse_size,
        metavar="SIZE",
        help="keep what is written to the root file system in the state directory: the next guest is this one, booted again",
    )
    parser.add_argument(
        "--suite",
        metavar="NAME",
        help="another Debian release, trixie for example, with its own kernel and Python; made when it is not there yet",
    )
    parser.add_argument(
        "--timeout", type=float, default=600, metavar="S", help="seconds until a hang is assumed (default 600)"
    )
    parser.add_argument(
        "--state", type=Path, metavar="DIR", help="where the disks are kept (default .vm in the working tree)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="a host directory that the command may write, as $BLKRECOV_VM_OUT"
    )
    options, command = words, []
    if "--" in words:
        split = words.index("--")
        options, command = words[:split], words[split + 1 :]
    arguments = parser.parse_args(options)
    if not command:
        parser.error("no command: write it after --")
    arguments.command = command
    return arguments


def run_native(arguments: argparse.Namespace) -> int:
    """Run the command right here. Refused with a cause where that cannot work."""
    if os.geteuid() != 0:
        sys.exit("scripts/vm: --native needs root; run it with sudo")
    if arguments.systemd or arguments.keep or arguments.suite:
        sys.exit("scripts/vm: --systemd, --keep and --suite go with the guest kernel only")
    if arguments.disk:
        sys.exit("scripts/vm: --disk goes with the guest kernel only; give the command block devices of this machine")
    modules = ["dm-mod", "loop", "dm-raid", "dm-mirror", "dm-snapshot", "target_core_mod", "tcm_loop"]
    subprocess.run(["modprobe", "--all", *modules], check=False, stderr=subprocess.DEVNULL)
    if not Path("/sys/class/misc/device-mapper").exists():
        sys.exit("scripts/vm: this machine's kernel has no device-mapper; run without --native")
    environment = dict(os.environ)
    if arguments.out:
        environment["BLKRECOV_VM_OUT"] = str(arguments.out.resolve())
    try:
        return subprocess.run(arguments.command, timeout=arguments.timeout, env=environment, check=False).returncode
    except subprocess.TimeoutExpired:
        print(f"scripts/vm: the command did not end within {arguments.timeout:g} s", file=sys.stderr)
        return TIMED_OUT


def make_disks(arguments: argparse.Namespace) -> list[str]:
    """Create the disks that do not exist yet; the kernel's arguments for all of them."""
    state = arguments.state or ROOT / ".vm"
    words = []
    for number, size in enumerate(arguments.disk):
        state.mkdir(parents=True, exist_ok=True)
        image = (state / f"disk{number}.img").resolve()
        # A disk of another size is another disk: the one that is there keeps its contents.
        if image.exists() and image.stat().st_size != size:
            image = image.with_name(f"disk{number}-{size}.img")
        if not image.exists():
            with image.open("wb") as file:
                file.truncate(size)
        words.append(f"ubd{number}={image}")
    if arguments.keep:
        image = (state / "root.img").resolve()
        if not image.exists():
            state.mkdir(parents=True, exist_ok=True)
            with image.open("wb") as file:
                file.truncate(arguments.keep)
        words += [f"ubd{KEPT}={image}", f"keep=/dev/ubd{chr(ord('a') + KEPT)}"]
    return words


def suite_directory(arguments: argparse.Namespace) -> Path:
    """Where another release is, on which guests can be booted; made when it is not there yet, in minutes."""
    directory: Path = ROOT / ".vm" / "suites" / arguments.suite
    subprocess.run([HERE / "suite", arguments.suite, directory], check=True)
    return directory


def write_job(job: Path, arguments: argparse.Namespace, terminal: bool) -> None:
    """Leave for the guest what it is to run, as a shell script: the quoting is the shell's own."""
    keep = {
        name: value for name, value in os.environ.items() if name in PASSED_ON or name.startswith(PASSED_ON_PREFIXES)
    }
    keep["PATH"] = f"{ROOT / '.venv/bin'}:{GUEST_PATH}"
    if arguments.suite:
        keep["PATH"], keep["PYTHONPATH"] = GUEST_PATH, f"{ROOT}:/opt/python"
    keep["HOME"] = "/root"
    if arguments.out:
        keep["BLKRECOV_VM_OUT"] = "/run/vm/out"
    if terminal:
        size = shutil.get_terminal_size()
        (job / "size").write_text(f"{size.lines} columns {size.columns}")
    lines = [f"export {name}={shlex.quote(value)}" for name, value in sorted(keep.items())]
    lines += [f"cd {shlex.quote(os.getcwd())}", f"exec {shlex.join(arguments.command)}", ""]
    (job / "command").write_text("\n".join(lines))
    (job / "terminal").write_text("yes" if terminal else "no")
    (job / "manager").write_text("systemd" if arguments.systemd else "none")
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (job / "out").write_text(str(arguments.out.resolve()))


def cut_power(guest: subprocess.Popen[bytes]) -> None:
    """Kill the guest's kernel with all its helpers. Its main process alone would leave those that write to the disks, and
    they hold the locks that the next guest on the same disks needs.
    """
    with contextlib.suppress(ProcessLookupError):
        os.killpg(guest.pid, signal.SIGKILL)


def watch_over(guest: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
    """A process that cuts the guest's power when this one has gone, even by SIGKILL: its standard input ends then."""
    return subprocess.Popen(
        ["sh", "-c", f"cat >/dev/null; kill -s KILL -- -{guest.pid} 2>/dev/null"],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )


def tail(log: Path, lines: int = 60) -> str:
    text = log.read_bytes().decode(errors="replace").splitlines() if log.exists() else []
    return "\n".join(f"    {line}" for line in text[-lines:] if line.strip()) or "    (empty)"


def boot(arguments: argparse.Namespace, job: Path, terminal: bool) -> int:
    console = job / "console.log"
    suite = suite_directory(arguments) if arguments.suite else None
    words = [
        str(suite / KERNEL) if suite else KERNEL,
        f"mem={arguments.mem}",
        f"uml_dir={job}",
        "root=/dev/root",
        "rootfstype=hostfs",
        "rootflags=/",
        "ro",
        f"init={HERE / 'init'}",
        "con=null",
        "quiet",
        *make_disks(arguments),
        f"job={job}",
        *([f"lower={suite / 'root'}"] if suite else []),
    ]
    with console.open("wb") as log, open(os.devnull, "rb") as null:
        source = sys.stdin.fileno() if terminal else null.fileno()
        words += [f"con0=null,fd:{log.fileno()}", "con1=fd:0,fd:1", "con2=null,fd:2"]
        # A process group of its own, and on a terminal the one in the foreground, or it could not read from it.
        guest = subprocess.Popen(words, stdin=source, pass_fds=(log.fileno(),), process_group=0)
        if terminal:
            signal.signal(signal.SIGTTOU, signal.SIG_IGN)
            os.tcsetpgrp(sys.stdin.fileno(), guest.pid)
        guard = watch_over(guest)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda _number, _frame: cut_power(guest))
        try:
            guest.wait(timeout=arguments.timeout)
        except subprocess.TimeoutExpired:
            print(
                f"scripts/vm: the command did not end within {arguments.timeout:g} s; the guest's power was cut.\n"
                f"Last words of its kernel:\n{tail(console)}",
                file=sys.stderr,
            )
            return TIMED_OUT
        finally:
            cut_power(guest)
            guest.wait()
            guard.communicate()
            if terminal:
                os.tcsetpgrp(sys.stdin.fileno(), os.getpgrp())
    status = job / "status"
    if status.exists() and status.read_text().strip():
        return int(status.read_text())
    print(
        f"scripts/vm: the guest ended without the command's exit status (kernel process: {guest.returncode}).\n"
        f"Last words of its kernel:\n{tail(console)}",
        file=sys.stderr,
    )
    return GUEST_DIED


def main() -> int:
    arguments = parse_arguments(sys.argv[1:])
    if arguments.native:
        return run_native(arguments)
    if shutil.which(KERNEL) is None or not MODULES.is_dir():
        sys.exit("scripts/vm: the Debian package user-mode-linux is not installed")
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    saved = termios.tcgetattr(sys.stdin) if terminal else None
    started = time.monotonic()
    job = Path(tempfile.mkdtemp(prefix="blkrecov-vm-"))
    try:
        write_job(job, arguments, terminal)
        return boot(arguments, job, terminal)
    finally:
        if saved is not None:
            termios.tcsetattr(sys.stdin, termios.TCSANOW, saved)
        shutil.rmtree(job, ignore_errors=True)
        if os.environ.get("BLKRECOV_VM_VERBOSE"):
            print(f"scripts/vm: {time.monotonic() - started:.1f} s", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
