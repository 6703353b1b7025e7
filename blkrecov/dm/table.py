"""Device-mapper tables as values.

A table says which target serves which sectors of a device. Everything here is a value that renders itself to the words that a
target's constructor reads; nothing here loads one. What can be wrong in a table by itself (a chunk that is no power of two, a
rebuild of a missing leg) is refused when the value is made, with a sentence; the kernel would say EINVAL and leave the reason
in its log. What only the kernel can know (does the device exist, are superblocks on it) stays the kernel's.

Rendered words are in the order in which the kernel prints them (STATUSTYPE_TABLE), so that a rendered table and a table read
back can be compared as text, given that devices are named by major:minor. There is no way back from words to values: what we
want comes from our configuration, never from what happens to be loaded.
"""

import re
from dataclasses import dataclass
from enum import Enum, unique
from typing import Final, TypeAlias

from blkrecov.errors import InvalidArgument
from blkrecov.units import Sectors

_DEVICE: Final = re.compile(r"\S+")
_MAX_REGIONS: Final = 2**21  # drivers/md/dm-raid.c, validate_region_size()
_MIN_CHUNK: Final = 8  # drivers/md/dm-raid.c, parse_raid_params(): "Chunk size value is too small"


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetLine:
    """One line of a table: `params` are the target's own words, without start, length and kind."""

    start: Sectors
    length: Sectors
    kind: str
    params: str

    def __str__(self) -> str:
        return f"{self.start} {self.length} {self.kind} {self.params}".rstrip()


Table: TypeAlias = tuple[TargetLine, ...]


def raid_devices(params: str) -> tuple[str, ...]:
    """The devices in a raid target's words, a metadata and a data device for each leg: "raid1 1 0 2 253:0 253:1 253:2 253:3"."""
    words = params.split()
    return tuple(words[2 + int(words[1]) + 1 :])


def raid_rates(params: str) -> tuple[int, int]:
    """The least and the largest recovery rate in a raid target's words, in KiB/s per leg; 0 for one that is not there."""
    words = params.split()
    options = words[2 : 2 + int(words[1])]
    return _option(options, "min_recovery_rate"), _option(options, "max_recovery_rate")


def _option(options: list[str], name: str) -> int:
    return int(options[options.index(name) + 1]) if name in options else 0


def length_of(table: Table) -> Sectors:
    """Sectors of the device that this table makes."""
    return Sectors(sum(line.length for line in table))


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """`length` sectors of a device from `offset` on. A device is a path or major:minor."""

    device: str
    offset: Sectors
    length: Sectors

    def __post_init__(self) -> None:
        _require_device(self.device)
        _require_length(self.length)
        _require(self.offset >= 0, f"an offset of {self.offset} sectors is before the device's start")


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearTable:
    """Segments one after the other, one linear target each. Kernel: drivers/md/dm-linear.c"""

    segments: tuple[Segment, ...]

    def __post_init__(self) -> None:
        _require(bool(self.segments), "a linear table needs a segment")

    def render(self) -> Table:
        lines = []
        start = 0
        for segment in self.segments:
            params = f"{segment.device} {segment.offset}"
            lines.append(TargetLine(start=Sectors(start), length=segment.length, kind="linear", params=params))
            start += segment.length
        return tuple(lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorTable:
    """Every access fails. Kernel: drivers/md/dm-target.c, io_err_map()"""

    length: Sectors

    def __post_init__(self) -> None:
        _require_length(self.length)

    def render(self) -> Table:
        return _single(self.length, "error")


@dataclass(frozen=True, slots=True)
class DropWrites:
    """In the down time writes are lost silently, reads work."""

    def words(self) -> tuple[str, ...]:
        return ("drop_writes",)


@dataclass(frozen=True, slots=True)
class ErrorWrites:
    """In the down time writes fail, reads work."""

    def words(self) -> tuple[str, ...]:
        return ("error_writes",)


@dataclass(frozen=True, slots=True, kw_only=True)
class CorruptByte:
    """In the down time byte `nth` (from 1) of each read, or each write, becomes `value`."""

    nth: int
    value: int
    writes: bool = False

    def __post_init__(self) -> None:
        _require(self.nth >= 1, "bytes of an I/O are counted from 1")
        _require(0 <= self.value <= 255, f"{self.value} is not a byte")

    def words(self) -> tuple[str, ...]:
        # The last word limits it to bios with these flags; 0 is every bio.
        return ("corrupt_bio_byte", str(self.nth), "w" if self.writes else "r", str(self.value), "0")


FLAKEY_LIMIT_S: Final = 2**32 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class FlakeyTable:
    """In turns, from its load on: works for up_s seconds, misbehaves for down_s. Without features all I/O fails then.

    Together the two are at most FLAKEY_LIMIT_S. Kernel: drivers/md/dm-flakey.c, flakey_ctr()
    """

    source: Segment
    up_s: int
    down_s: int
    features: tuple[DropWrites | ErrorWrites | CorruptByte, ...] = ()

    def __post_init__(self) -> None:
        _require(self.up_s >= 0 and self.down_s >= 0, "the up and down times cannot be negative")
        _require(self.up_s + self.down_s > 0, "the up and down times cannot both be zero")
        _require(
            self.up_s + self.down_s <= FLAKEY_LIMIT_S,
            f"the up and down times are more than {FLAKEY_LIMIT_S} s together",
        )
        kinds = {type(feature) for feature in self.features}
        _require(len(kinds) == len(self.features), "a flakey feature is given twice")
        _require(not {DropWrites, ErrorWrites} <= kinds, "writes are either dropped or failed")
        corrupts_writes = any(isinstance(feature, CorruptByte) and feature.writes for feature in self.features)
        _require(not (corrupts_writes and len(kinds) > 1), "writes that are dropped or failed cannot be corrupted")

    def render(self) -> Table:
        words = [word for feature in self.features for word in feature.words()]
        place = (self.source.device, str(self.source.offset))
        return _single(self.source.length, "flakey", *place, str(self.up_s), str(self.down_s), str(len(words)), *words)


@dataclass(frozen=True, slots=True, kw_only=True)
class DelayTable:
    """A slow device. Times are milliseconds; a flush takes write_ms. Kernel: drivers/md/dm-delay.c, delay_ctr()"""

    source: Segment
    read_ms: int
    write_ms: int

    def __post_init__(self) -> None:
        _require(self.read_ms >= 0 and self.write_ms >= 0, "a delay cannot be negative")

    def render(self) -> Table:
        place = (self.source.device, str(self.source.offset))
        return _single(self.source.length, "delay", *place, str(self.read_ms), *place, str(self.write_ms))


@dataclass(frozen=True, slots=True, kw_only=True)
class DustTable:
    """A medium with unreadable blocks of `block` bytes. Which they are it is told by messages, after its load.

    Every I/O is cut into single blocks. Kernel: drivers/md/dm-dust.c, dust_ctr() and dust_message()
    """

    source: Segment
    block: int

    def __post_init__(self) -> None:
        _require(_is_power_of_two(self.block) and self.block >= 512, f"{self.block} bytes are no block of a medium")

    def render(self) -> Table:
        return _single(self.source.length, "dust", self.source.device, str(self.source.offset), str(self.block))


@unique
class RaidKind(Enum):
    """The kernel's names, of which we use one per level. Kernel: drivers/md/dm-raid.c, raid_types[]"""

    RAID0 = "raid0"
    RAID1 = "raid1"
    RAID4 = "raid4"
    RAID5 = "raid5_ls"
    RAID6 = "raid6_zr"
    RAID10 = "raid10"

    @property
    def minimum_legs(self) -> int:
        # The kernel takes a raid4 and raid5 of two legs, which is a mirror that pays for parity.
        return {RaidKind.RAID4: 3, RaidKind.RAID5: 3, RaidKind.RAID6: 4}.get(self, 2)


MAXIMUM_LEGS: Final = 253  # drivers/md/dm-raid.c, MAX_RAID_DEVICES


@dataclass(frozen=True, slots=True, kw_only=True)
class Leg:
    """A metadata device (superblock and bitmap) and a data device. Without the first nothing about the leg persists."""

    meta: str | None
    data: str

    def __post_init__(self) -> None:
        for device in (self.meta, self.data):
            if device is not None:
                _require_device(device)

    def words(self) -> tuple[str, str]:
        return self.meta or "-", self.data


@dataclass(frozen=True, slots=True)
class MissingLeg:
    """A slot that keeps its number and has no devices."""

    def words(self) -> tuple[str, str]:
        return "-", "-"


MISSING: Final = MissingLeg()


@dataclass(frozen=True, slots=True, kw_only=True)
class RaidTable:
    """A dm-raid target. `length` is the array's, `leg_length` follows from it.

    Left out on purpose: `sync` (initialises again at every load), `daemon_sleep` (its unit is not what is documented),
    and everything for reshaping.

    Raises:  InvalidArgument for whatever can never work.
    Kernel:  drivers/md/dm-raid.c, raid_ctr() and parse_raid_params(); the order of options is raid_status()'s.
    """

    kind: RaidKind
    length: Sectors
    chunk: Sectors
    legs: tuple[Leg | MissingLeg, ...]
    region: Sectors | None = None
    rebuild: tuple[int, ...] = ()
    nosync: bool = False
    min_recovery_rate: int | None = None  # KiB/s per leg, in place of /proc/sys/dev/raid/speed_limit_min
    max_recovery_rate: int | None = None
    raid10_copies: int = 2

    def __post_init__(self) -> None:
        _require_length(self.length)
        self._check_legs()
        self._check_chunk()
        self._check_region()
        self._check_rates()
        self._check_rebuild()

    @property
    def leg_length(self) -> Sectors:
        """Sectors that the array takes of each leg's data device."""
        stripes, copies = self._stripes()
        return Sectors(self.length * copies // stripes)

    @property
    def redundancy(self) -> int:
        """Legs that may be lost, whichever they are."""
        match self.kind:
            case RaidKind.RAID0:
                return 0
            case RaidKind.RAID1:
                return len(self.legs) - 1
            case RaidKind.RAID4 | RaidKind.RAID5:
                return 1
            case RaidKind.RAID6:
                return 2
            case RaidKind.RAID10:
                return self.raid10_copies - 1

    def render(self) -> Table:
        options = [str(self.chunk)]
        if self.nosync:
            options.append("nosync")
        for index in self.rebuild:
            options += ["rebuild", str(index)]
        if self.min_recovery_rate is not None:
            options += ["min_recovery_rate", str(self.min_recovery_rate)]
        if self.max_recovery_rate is not None:
            options += ["max_recovery_rate", str(self.max_recovery_rate)]
        if self.region is not None:
            options += ["region_size", str(self.region)]
        if self.kind is RaidKind.RAID10:
            options += ["raid10_copies", str(self.raid10_copies)]
        devices = [word for leg in self.legs for word in leg.words()]
        head = (self.kind.value, str(len(options)))
        return _single(self.length, "raid", *head, *options, str(len(self.legs)), *devices)

    def _stripes(self) -> tuple[int, int]:
        """(legs that hold different data at one time, times that each sector is stored among them)."""
        count = len(self.legs)
        match self.kind:
            case RaidKind.RAID0:
                return count, 1
            case RaidKind.RAID1:
                return 1, 1
            case RaidKind.RAID4 | RaidKind.RAID5:
                return count - 1, 1
            case RaidKind.RAID6:
                return count - 2, 1
            case RaidKind.RAID10:
                return count, self.raid10_copies

    def _check_legs(self) -> None:
        count, minimum = len(self.legs), self.kind.minimum_legs
        _require(
            minimum <= count <= MAXIMUM_LEGS, f"{self.kind.value} takes {minimum} to {MAXIMUM_LEGS} legs, not {count}"
        )
        if self.kind is RaidKind.RAID10:
            _require(2 <= self.raid10_copies <= count, f"{count} legs cannot hold {self.raid10_copies} copies")
        else:
            _require(self.raid10_copies == 2, f"{self.kind.value} has no number of copies")

    def _check_chunk(self) -> None:
        stripes, copies = self._stripes()
        if self.kind is RaidKind.RAID1:
            _require(self.chunk == 0, "raid1 has no stripes: its chunk is 0")
            return
        _require(
            _is_power_of_two(self.chunk) and self.chunk >= _MIN_CHUNK,
            f"a chunk of {self.chunk} sectors is no power of two from 8 up",
        )
        # The kernel asks only for a division without rest; md would round each leg down to a whole chunk after that.
        whole = self.length * copies % (stripes * self.chunk) == 0
        _require(whole, f"{self.length} sectors do not divide into whole chunks of {self.chunk} on {stripes} legs")

    def _check_region(self) -> None:
        if self.region is None:
            return
        _require(self.kind is not RaidKind.RAID0, "raid0 has no regions")
        _require(_is_power_of_two(self.region), f"a region of {self.region} sectors is no power of two")
        _require(
            self.chunk <= self.region <= self.length,
            f"a region of {self.region} sectors is not between chunk and length",
        )
        # Against the array's length for every level, although the bitmap counts a leg's regions.
        _require(
            self.region >= self.length // _MAX_REGIONS,
            f"regions of {self.region} sectors would be more than {_MAX_REGIONS}",
        )

    def _check_rates(self) -> None:
        rates = [rate for rate in (self.min_recovery_rate, self.max_recovery_rate) if rate is not None]
        _require(not rates or self.kind is not RaidKind.RAID0, "raid0 has nothing to recover")
        _require(all(0 < rate < 2**31 for rate in rates), "a recovery rate is a number of KiB/s above zero")
        _require(rates == sorted(rates), "the smallest recovery rate is above the largest")

    def _check_rebuild(self) -> None:
        missing = {index for index, leg in enumerate(self.legs) if isinstance(leg, MissingLeg)}
        _require(
            list(self.rebuild) == sorted(set(self.rebuild)), "the legs to rebuild are in ascending order, each once"
        )
        _require(all(0 <= index < len(self.legs) for index in self.rebuild), "a leg to rebuild does not exist")
        _require(missing.isdisjoint(self.rebuild), "a missing leg cannot be rebuilt")
        _require(not (self.nosync and self.rebuild), "nosync says that nothing is to be rebuilt")
        _require(not (self.nosync and self.kind is RaidKind.RAID0), "raid0 is never out of sync")
        # "nosync" on a new raid6 is refused: its read-modify-write needs parity that was right at some time.
        _require(not (self.nosync and self.kind is RaidKind.RAID6), "the kernel takes no raid6 without initial parity")
        lost = len(missing) + len(self.rebuild)
        # A raid10 outlives the loss of any legs that are not each other's copies; the kernel knows which those are.
        limit = len(self.legs) - 1 if self.kind is RaidKind.RAID10 else self.redundancy
        _require(lost <= limit, f"{self.kind.value} cannot do without {lost} of {len(self.legs)} legs")


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreLog:
    """Which regions are in sync is kept in memory. A load copies everything, or nothing when the legs are known equal."""

    region: Sectors
    in_sync: bool = False

    def words(self) -> tuple[str, ...]:
        return ("core", "2", str(self.region), "nosync") if self.in_sync else ("core", "1", str(self.region))


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskLog:
    """Which regions are in sync is kept on a device, and believed at load: no `sync` or `nosync`, which would overrule it."""

    device: str
    region: Sectors

    def __post_init__(self) -> None:
        _require_device(self.device)

    def words(self) -> tuple[str, ...]:
        return "disk", "2", self.device, str(self.region)


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorLeg:
    device: str
    offset: Sectors

    def __post_init__(self) -> None:
        _require_device(self.device)
        _require(self.offset >= 0, f"an offset of {self.offset} sectors is before the device's start")


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorPart:
    """One mirror target. legs[0] is what the others are copied from. Kernel: drivers/md/dm-raid1.c, dm-log.c"""

    length: Sectors
    log: CoreLog | DiskLog
    legs: tuple[MirrorLeg, ...]

    def __post_init__(self) -> None:
        _require_length(self.length)
        _require(2 <= len(self.legs) <= 9, f"a mirror takes 2 to 9 legs, not {len(self.legs)}")
        region = self.log.region
        fits = _is_power_of_two(region) and 2 <= region <= min(self.length, 2**31)
        _require(fits, f"a region of {region} sectors is no power of two between 2 and the length")
        # Regions are searched with a signed int: drivers/md/dm-log.c, find_next_zero_bit() into lc->sync_search.
        _require(self.length // region < 2**31 - 1, f"regions of {region} sectors would be more than the log can count")

    def params(self) -> str:
        legs = [word for leg in self.legs for word in (leg.device, str(leg.offset))]
        # Without handle_errors a failed copy counts as a region in sync; with keep_log the half-copied leg can become the source.
        return " ".join((*self.log.words(), str(len(self.legs)), *legs, "1", "handle_errors"))


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorTable:
    """Mirror targets side by side. A target recovers one region at a time, so several of them copy in parallel."""

    parts: tuple[MirrorPart, ...]

    def __post_init__(self) -> None:
        _require(bool(self.parts), "a mirror table needs a part")
        logs = [part.log.device for part in self.parts if isinstance(part.log, DiskLog)]
        _require(len(logs) == len(set(logs)), "two mirrors cannot share a log device")

    def render(self) -> Table:
        lines = []
        start = 0
        for part in self.parts:
            lines.append(TargetLine(start=Sectors(start), length=part.length, kind="mirror", params=part.params()))
            start += part.length
        return tuple(lines)


@unique
class CowStore(Enum):
    """How the exceptions are kept; the value is the table's word."""

    PERSISTENT = "P"
    PERSISTENT_OVERFLOW = "PO"  # As P; a write to the snapshot that does not fit fails and shows as "Overflow".
    TRANSIENT = "N"


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotTable:
    """A snapshot of `origin`, the real device below the snapshot-origin. Kernel: drivers/md/dm-snap.c, snapshot_ctr()"""

    length: Sectors
    origin: str
    cow: str
    chunk: Sectors
    store: CowStore = CowStore.PERSISTENT

    def __post_init__(self) -> None:
        _require_length(self.length)
        _require_device(self.origin)
        _require_device(self.cow)
        _require(self.origin != self.cow, "a snapshot's exceptions cannot be stored on its origin")
        # 0 would be the kernel's default; then we would not know where the exceptions are. A page is the least that it takes.
        _require(
            _is_power_of_two(self.chunk) and self.chunk >= 8,
            f"a chunk of {self.chunk} sectors is no power of two from 8 up",
        )

    def render(self) -> Table:
        return _single(self.length, "snapshot", self.origin, self.cow, self.store.value, str(self.chunk))


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotOriginTable:
    """The device through which an origin is written, so that its snapshots see it. Kernel: drivers/md/dm-snap.c, origin_ctr()"""

    length: Sectors
    origin: str

    def __post_init__(self) -> None:
        _require_length(self.length)
        _require_device(self.origin)

    def render(self) -> Table:
        return _single(self.length, "snapshot-origin", self.origin)


def _single(length: Sectors, kind: str, *words: str) -> Table:
    return (TargetLine(start=Sectors(0), length=length, kind=kind, params=" ".join(words)),)


def _is_power_of_two(value: int) -> bool:
    return value > 0 and value & (value - 1) == 0


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise InvalidArgument(otherwise)


def _require_length(length: Sectors) -> None:
    _require(length > 0, f"a length of {length} sectors is no length")


def _require_device(device: str) -> None:
    """A device is one word: the kernel splits parameters at white space and takes a backslash for an escape."""
    single = _DEVICE.fullmatch(device) is not None and "\\" not in device and "\0" not in device
    _require(single and device != "-", f"{device!r} is not a device: give a path without blanks, or major:minor")
