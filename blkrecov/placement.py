"""Which files the rest of the machine wants of us, where they go, and what is in them.

The files in blkrecov/data are templates: they are the same for the Debian package and for an environment of pip's, but for the
commands and directories between two @. Where each goes is decided by who reads it:

    DEBIAN    where a distribution's packages have theirs
    LOCAL     where an administrator's own have theirs (systemd.unit(5), udev(7), dbus-daemon(1), systemd.generator(7))

LOCAL has below /etc what is read before a file system of its own at /usr/local could be mounted, and what is read nowhere else.
"""

import re
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final, Self

from blkrecov.errors import InvalidArgument

PLAIN: Final = 0o644
EXECUTABLE: Final = 0o755
# A path that means itself wherever it is put: in a unit (no %, no $), in a rule, in a shell's command.
_PLAIN_PATH: Final = re.compile(r"/[A-Za-z0-9_./+-]*")
_MARK: Final = re.compile(r"@[A-Z]+@")


class Reader(Enum):
    """Who reads a file."""

    UNITS = "systemd"
    GENERATORS = "systemd, at each reload"
    SYSUSERS = "systemd-sysusers"
    CATALOGS = "journalctl"
    RULES = "udev"
    HELPERS = "our rules"
    POLICIES = "the bus"
    MANUALS = "man"
    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"
    PROGRAMS = "people"

    @property
    def mode(self) -> int:
        return EXECUTABLE if self in (Reader.GENERATORS, Reader.HELPERS, Reader.PROGRAMS) else PLAIN


DEBIAN: Final[Mapping[Reader, str]] = {
    Reader.UNITS: "/usr/lib/systemd/system",
    Reader.GENERATORS: "/usr/lib/systemd/system-generators",
    Reader.SYSUSERS: "/usr/lib/sysusers.d",
    Reader.CATALOGS: "/usr/lib/systemd/catalog",
    Reader.RULES: "/usr/lib/udev/rules.d",
    Reader.HELPERS: "/usr/lib/udev",
    Reader.POLICIES: "/usr/share/dbus-1/system.d",
    Reader.MANUALS: "/usr/share/man/man8",
    Reader.BASH: "/usr/share/bash-completion/completions",
    Reader.ZSH: "/usr/share/zsh/vendor-completions",
    Reader.FISH: "/usr/share/fish/vendor_completions.d",
}
LOCAL: Final[Mapping[Reader, str]] = {
    Reader.UNITS: "/etc/systemd/system",
    Reader.GENERATORS: "/etc/systemd/system-generators",
    Reader.SYSUSERS: "/etc/sysusers.d",
    Reader.CATALOGS: "/usr/local/lib/systemd/catalog",
    Reader.RULES: "/etc/udev/rules.d",
    Reader.HELPERS: "/usr/local/lib/udev",
    Reader.POLICIES: "/etc/dbus-1/system.d",
    Reader.MANUALS: "/usr/local/share/man/man8",
    Reader.BASH: "/usr/local/share/bash-completion/completions",
    Reader.ZSH: "/usr/local/share/zsh/site-functions",
    Reader.FISH: "/usr/local/share/fish/vendor_completions.d",
    Reader.PROGRAMS: "/usr/local/bin",
}
# Our names where they differ from the reader's.
_NAMES: Final = {"blkrecov.sysusers": "blkrecov.conf", "blkrecov.bash": "blkrecov"}
_READERS: Final = (
    ("org.blkrecov1.conf", Reader.POLICIES),
    (".service", Reader.UNITS),
    ("-generator", Reader.GENERATORS),
    (".sysusers", Reader.SYSUSERS),
    (".catalog", Reader.CATALOGS),
    (".rules", Reader.RULES),
    ("_id", Reader.HELPERS),
    (".8", Reader.MANUALS),
    (".bash", Reader.BASH),
    ("_blkrecov", Reader.ZSH),
    (".fish", Reader.FISH),
)


@dataclass(frozen=True, slots=True)
class File:
    path: str
    text: str
    mode: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Programs:
    """What units and generator start; `libraries` are the directories that have to be mounted for that."""

    boot: str
    daemon: str
    libraries: tuple[str, ...]
    command: str | None = None

    @classmethod
    def of_package(cls) -> Self:
        return cls(boot="/usr/lib/blkrecov/boot", daemon="/usr/bin/blkrecovd", libraries=("/usr/lib/blkrecov",))

    @classmethod
    def of_environment(cls, interpreter: str, library: str, *, on_path: bool) -> Self:
        """An environment's interpreter, and the directory that it imports us from. Isolated: no variable and no directory of
        whoever calls it decides what is imported.

        `on_path` says that people find the command already. Raises: InvalidArgument for a path that would not mean itself.
        """
        for path in (interpreter, library):
            if not _PLAIN_PATH.fullmatch(path):
                raise InvalidArgument(
                    f"{path} cannot be written into units and rules as it is",
                    remedy="make the environment in a directory whose name has only letters, digits and any of . _ + -",
                )
        python = f"{interpreter} -I -m"
        return cls(
            boot=f"{python} blkrecov.boot",
            daemon=f"{python} blkrecov.daemon",
            libraries=(interpreter.rpartition("/")[0], library),
            command=None if on_path else f"{python} blkrecov.cli.main",
        )


def reader(name: str) -> Reader:
    """Raises: LookupError for a file that nobody is known to read."""
    for end, who in _READERS:
        if name.endswith(end):
            return who
    raise LookupError(name)


def files(places: Mapping[Reader, str], programs: Programs, templates: Mapping[str, str]) -> tuple[File, ...]:
    """Every file, by its path. `templates` are texts by the names of their files."""
    return tuple(sorted(_files(places, programs, templates), key=lambda file: file.path))


def _files(places: Mapping[Reader, str], programs: Programs, templates: Mapping[str, str]) -> Iterator[File]:
    words = {
        "@BOOT@": programs.boot,
        "@DAEMON@": programs.daemon,
        "@LIBRARIES@": " ".join(programs.libraries),
        "@HELPERS@": places[Reader.HELPERS],
    }
    for name, text in templates.items():
        who = reader(name)
        filled = _MARK.sub(lambda mark: words.get(mark[0], mark[0]), text)
        yield File(f"{places[who]}/{_NAMES.get(name, name)}", filled, who.mode)
    if programs.command is not None:
        launcher = f'#!/bin/sh\nexec {programs.command} "$@"\n'
        yield File(f"{places[Reader.PROGRAMS]}/blkrecov", launcher, Reader.PROGRAMS.mode)


@dataclass(frozen=True, slots=True)
class Changes:
    """What is between the files that are there and those that are wanted."""

    write: tuple[File, ...]
    remove: tuple[str, ...]
    strange: tuple[str, ...]


def changes(wanted: Iterable[File], present: Mapping[str, File], owned: Collection[str]) -> Changes:
    """`present` has what is there of the wanted paths and of the `owned` ones, which are ours since an earlier installation.

    A wanted file that is there, is another and is not ours is strange: it has to be left alone.
    """
    wanted = tuple(wanted)
    differ = tuple(file for file in wanted if present.get(file.path) != file)
    return Changes(
        write=differ,
        remove=tuple(sorted(set(owned) & set(present) - {file.path for file in wanted})),
        strange=tuple(file.path for file in differ if file.path in present and file.path not in owned),
    )


def writer(mode: int, uid: int, gid: int) -> str | None:
    """Who but root may replace a file, or what is in a directory; None for nobody. A sticky directory keeps each his own."""
    if uid:
        return f"user {uid}"
    if mode & stat.S_ISVTX:
        return None
    if mode & stat.S_IWOTH:
        return "everybody"
    return f"group {gid}" if gid and mode & stat.S_IWGRP else None
