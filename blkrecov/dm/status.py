"""What targets say of themselves: the words of TABLE_STATUS become types here, and nowhere else.

A reader takes the words that it needs and ignores what follows them, for targets only ever append words. Words that every
kernel we run on prints must be there; an unknown letter or action is not guessed at. Whether a device is suspended is not in
these words, but it changes what they mean (dm-raid then prints "AA 0/N frozen" whatever the truth): ask Control.info().
"""

import re
from dataclasses import dataclass
from enum import Enum, unique
from typing import Final, NoReturn, TypeAlias, TypeVar

from blkrecov.errors import ProviderFailure
from blkrecov.units import Sectors

_RATIO: Final = re.compile(r"(\d+)/(\d+)")
_Word = TypeVar("_Word", bound=Enum)


class MalformedStatus(ProviderFailure):
    """A status line that is not what this kind of target prints. `text` is the line."""

    default_remedy = "report it with the text and the kernel's version"

    def __init__(self, text: str, wrong: str) -> None:
        super().__init__(f"cannot read the kernel's status {text!r}: {wrong}")
        self.text: Final = text


@unique
class LegHealth(Enum):
    """One letter per leg of a dm-raid target."""

    IN_SYNC = "A"
    OUT_OF_SYNC = "a"
    FAILED = "D"
    MISSING = "-"


@unique
class SyncAction(Enum):
    """What md is doing. Kernel: drivers/md/dm-raid.c, sync_str()"""

    FROZEN = "frozen"
    RESHAPE = "reshape"
    RESYNC = "resync"
    CHECK = "check"
    REPAIR = "repair"
    RECOVER = "recover"
    IDLE = "idle"


@unique
class Journal(Enum):
    """The journal of a parity array."""

    WRITE_THROUGH = "A"
    WRITE_BACK = "a"
    DEAD = "D"
    NONE = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class RaidStatus:
    """done and total are a leg's sectors, for raid10 the array's. mismatch counts only right after a check."""

    kind: str
    legs: tuple[LegHealth, ...]
    done: Sectors
    total: Sectors
    action: SyncAction
    mismatch: Sectors
    data_offset: Sectors
    journal: Journal

    @property
    def in_sync(self) -> bool:
        """Every leg is there and equal. Three words together say so; each alone is wrong at some moment.

        "AA 0/N frozen" stands for any state at all; "Aa N/N idle" is a recovery about to begin; "AA x/N repair" can be an
        initial resync that a reload continued. LVM2's dm_get_status_raid() corrects for the same things.
        """
        everywhere = all(leg is LegHealth.IN_SYNC for leg in self.legs)
        return self.action is SyncAction.IDLE and self.done == self.total and everywhere

    @property
    def lost(self) -> tuple[int, ...]:
        """Indexes of the legs that hold nothing usable: failed or missing."""
        gone = (LegHealth.FAILED, LegHealth.MISSING)
        return tuple(index for index, leg in enumerate(self.legs) if leg in gone)


def parse_raid(params: str) -> RaidStatus:
    """Read the status words of a dm-raid target.

    Shape:   raid1 2 Aa 512/2048 recover 0 [data_offset [journal]]; later words are ignored. data_offset came with target
             1.9.0 (Linux 4.8), journal with 1.10.1 (Linux 4.11).
    Units:   both halves of the ratio, mismatches and data_offset are 512-byte sectors.
    Raises:  MalformedStatus, holding the text, for a missing or unreadable word.
    Kernel:  drivers/md/dm-raid.c, raid_status().
    """
    words = params.split()
    if len(words) < 6:
        raise MalformedStatus(params, f"{len(words)} words, where at least 6 are due")
    kind, count, health, ratio, action, mismatch = words[:6]
    legs = tuple(_word(LegHealth, letter, params) for letter in health)
    if _number(count, params) != len(legs):
        raise MalformedStatus(params, f"{count} legs, but {len(legs)} letters")
    done, total = _ratio(ratio, params)
    return RaidStatus(
        kind=kind,
        legs=legs,
        done=Sectors(done),
        total=Sectors(total),
        action=_word(SyncAction, action, params),
        mismatch=Sectors(_number(mismatch, params)),
        data_offset=Sectors(_number(words[6], params) if len(words) > 6 else 0),
        journal=_word(Journal, words[7], params) if len(words) > 7 else Journal.NONE,
    )


@unique
class MirrorHealth(Enum):
    """One letter per leg of a dm-mirror target. Kernel: drivers/md/dm-raid1.c, device_status_char()"""

    ALIVE = "A"
    WRITE_FAILED = "D"
    COPY_FAILED = "S"
    READ_FAILED = "R"
    FLUSH_FAILED = "F"
    UNKNOWN = "U"


@unique
class LogHealth(Enum):
    """The letter of a disk log. Kernel: drivers/md/dm-log.c, disk_status()"""

    ALIVE = "A"
    FAILED = "D"
    FLUSH_FAILED = "F"


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorLog:
    """`device` and the health are a disk log's; a core log is always alive."""

    kind: str
    device: str | None
    health: LogHealth


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorStatus:
    """done and total are regions. devices are major:minor."""

    devices: tuple[str, ...]
    done: int
    total: int
    legs: tuple[MirrorHealth, ...]
    log: MirrorLog

    @property
    def healthy(self) -> bool:
        return self.log.health is LogHealth.ALIVE and all(leg is MirrorHealth.ALIVE for leg in self.legs)

    @property
    def in_sync(self) -> bool:
        """Every region was copied and no leg has had an error since."""
        return self.done == self.total and self.healthy


def parse_mirror(params: str) -> MirrorStatus:
    """Read the status words of a dm-mirror target.

    Shape:   2 253:0 253:1 27/512 1 AA 3 disk 253:2 A, or ... 1 core; later words are ignored.
    Units:   the ratio counts regions.
    Raises:  MalformedStatus, holding the text, for a missing or unreadable word.
    Kernel:  drivers/md/dm-raid1.c, mirror_status(); drivers/md/dm-log.c, core_status() and disk_status().
    """
    words = iter(params.split())

    def take() -> str:
        word = next(words, None)
        if word is None:
            raise MalformedStatus(params, "words are missing at its end")
        return word

    count = _number(take(), params)
    devices = tuple(take() for _ in range(count))
    done, total = _ratio(take(), params)
    # Words of health follow; there has only ever been one of them.
    health, *_ = [take() for _ in range(_number(take(), params))] or [""]
    legs = tuple(_word(MirrorHealth, letter, params) for letter in health)
    if len(legs) != count:
        raise MalformedStatus(params, f"{count} legs, but {len(legs)} letters")
    log = tuple(take() for _ in range(_number(take(), params)))
    return MirrorStatus(devices=devices, done=done, total=total, legs=legs, log=_mirror_log(log, params))


def _mirror_log(words: tuple[str, ...], params: str) -> MirrorLog:
    match words:
        case ("core", *_):
            return MirrorLog(kind="core", device=None, health=LogHealth.ALIVE)
        case ("disk", device, health, *_):
            return MirrorLog(kind="disk", device=device, health=_word(LogHealth, health, params))
        case _:
            raise MalformedStatus(params, "a log of an unknown kind")


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotUsage:
    """A snapshot that works. allocated includes the metadata; a store is empty, or merged, when the two are equal."""

    allocated: Sectors
    total: Sectors
    metadata: Sectors


@unique
class SnapshotTrouble(Enum):
    """What stands in place of the usage."""

    INVALID = "Invalid"  # For good: an origin write could not be recorded. Reads fail.
    OVERFLOW = "Overflow"  # A write to the snapshot did not fit; reads work.
    MERGE_FAILED = "Merge failed"
    UNKNOWN = "Unknown"  # A store that does not count, such as a transient one of old.


SnapshotStatus: TypeAlias = SnapshotUsage | SnapshotTrouble


def parse_snapshot(params: str) -> SnapshotStatus:
    """Read the status words of a dm-snapshot or snapshot-merge target.

    Shape:   64/16384 64, or one of the phrases of SnapshotTrouble; later words are ignored.
    Units:   512-byte sectors.
    Raises:  MalformedStatus, holding the text, for a missing or unreadable word.
    Kernel:  drivers/md/dm-snap.c, snapshot_status().
    """
    for trouble in SnapshotTrouble:
        if params.startswith(trouble.value):
            return trouble
    match params.split():
        case [ratio, metadata, *_]:
            allocated, total = _ratio(ratio, params)
            return SnapshotUsage(
                allocated=Sectors(allocated), total=Sectors(total), metadata=Sectors(_number(metadata, params))
            )
        case _:
            raise MalformedStatus(params, "words are missing at its end")


@dataclass(frozen=True, slots=True, kw_only=True)
class DustStatus:
    """`fails`: the blocks that it was told of fail reads. `quiet`: it logs nothing of that."""

    fails: bool
    quiet: bool


def parse_dust(params: str) -> DustStatus:
    """Read the status words of a dm-dust target.

    Shape:   7:0 bypass verbose, or 7:0 fail_read_on_bad_block quiet.
    Raises:  MalformedStatus, holding the text, for a missing or unreadable word.
    Kernel:  drivers/md/dm-dust.c, dust_status().
    """
    match params.split():
        case [_, "bypass" | "fail_read_on_bad_block" as mode, "verbose" | "quiet" as log, *_]:
            return DustStatus(fails=mode != "bypass", quiet=log == "quiet")
        case _:
            raise MalformedStatus(params, "these are not a dust target's words")


def _word(kind: type[_Word], word: str, params: str) -> _Word:
    try:
        return kind(word)
    except ValueError:
        _unreadable(word, params)


def _number(word: str, params: str) -> int:
    # isdecimal() alone also takes other scripts' digits, which the kernel does not print.
    if not (word.isascii() and word.isdecimal()):
        _unreadable(word, params)
    return int(word)


def _ratio(word: str, params: str) -> tuple[int, int]:
    match = _RATIO.fullmatch(word)
    if match is None:
        _unreadable(word, params)
    return int(match[1]), int(match[2])


def _unreadable(word: str, params: str) -> NoReturn:
    raise MalformedStatus(params, f"{word!r} was not expected")
