"""Whose word counts: a file that says that it is a drive is believed where root alone can have written it.

A drive says which array it is of, which configuration that has, and what its LUNs hold; and the UUIDs that it says this by are
shown to everybody by udev. So whoever can write to a file that is looked at could make drives, take one's place, or take an
array's configuration away.

    the file          is root's, and nobody else may write to it. Asked of the open descriptor, by all who read or write a drive's
                      metadata through a file and by whoever attaches it, so renames and links in between change nothing
    the way to it     the same of each directory, where nobody has named the place: a file elsewhere may be an old copy that
                      somebody has moved there, or stand on a file system that somebody has brought along

A path that root has named (drive add, reconnect --path), that is remembered for that, or that lies in a configured directory has
a way that root has chosen: there the owner of a directory can take a drive away, and put none in its place but another of root's.
"""

import os
import shlex
import stat
from pathlib import Path
from typing import Final

from blkrecov.errors import InvalidDisk

_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH


class Untrusted(InvalidDisk):
    """Somebody else than root could have written what is there."""

    def __init__(self, path: str, why: str, *, remedy: str | None = None) -> None:
        place = shlex.quote(path)
        super().__init__(
            f"{path} is not believed: {why}",
            remedy=remedy or f"if what is in it is yours: chown root: {place}; chmod go-w {place}",
        )


def flaw(owner: int, mode: int, user: int = 0) -> str:
    """Why somebody else than root, or the user who asks, could have written something; empty where nobody could.

    `mode` is st_mode. Rights by an access control list show in the group's bits, which are its mask then (acl(5)).
    """
    if owner not in (0, user):
        return f"it is not root's, but user {owner}'s"
    if mode & _OTHERS:
        return f"others than its owner may write to it (mode {stat.S_IMODE(mode):04o})"
    return ""


def flaw_of(status: os.stat_result) -> str:
    """The same of a file or directory as it was looked at."""
    return flaw(status.st_uid, status.st_mode, os.geteuid())


def refuse(path: str) -> None:
    """Of a regular file that is about to become a drive. Anything else is passed. Raises: Untrusted; OSError."""
    status = Path(path).stat()
    if stat.S_ISREG(status.st_mode) and (why := flaw_of(status)):
        raise Untrusted(path, why)


def way_flaw(path: str, top: Path) -> str:
    """Why somebody else could have put something at a path, by the directories from `top` down to it. Empty where nobody could.

    Asked from the top, so that nobody can exchange what is asked next. That a directory is sticky is not enough: anybody may put
    things there.
    """
    for directory in reversed(Path(path).parents):
        if directory.is_relative_to(top):
            try:
                status = directory.lstat()
            except OSError as error:
                return f"{directory} cannot be looked at ({error.strerror})"
            if not stat.S_ISDIR(status.st_mode):
                return f"{directory} is no directory"
            if why := flaw_of(status):
                return f"it lies in {directory}, and {why}"
    return ""
