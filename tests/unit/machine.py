"""A machine in memory, for plans to be carried out on.

It knows the rules that a plan can break (a name is taken, a device is in use, a table names a device that is not there,
a member without superblock among members that have one) and the little of dm-raid that decides the next plan: superblocks, a leg
that is given up when md meets its failure and called failed by the others' superblocks, a rebuild that a table asks for. And of
dm-snapshot: who may write to an origin when. What the real one does is tested in tests/kernel.
"""

from dataclasses import dataclass, field, replace
from uuid import UUID

from blkrecov.converge import converge
from blkrecov.dm.superblock import Superblock
from blkrecov.dm.table import Table, TargetLine
from blkrecov.model import Document, Lun
from blkrecov.observed import Backing, Exported, Live, Observed
from blkrecov.proposal import Proposal
from blkrecov.steps import (
    ClearInactive,
    CreateDevice,
    DiscardExtent,
    Export,
    ForceResync,
    FreezeFilesystems,
    MarkUnreadable,
    RemoveDevice,
    RenameDevice,
    ReplaceTable,
    Rescan,
    Resume,
    SetReady,
    SettleFailures,
    Step,
    Suspend,
    ThawFilesystems,
    Unexport,
    ZeroExtent,
)
from blkrecov.units import Sectors

NODE = "/dev/mapper/"
Place = tuple[str, int]


@dataclass
class Plex:
    """What md knows of a loaded plex: the places of its superblocks (None: unreadable when loaded), a letter per leg."""

    places: list[Place | None]
    letters: list[str]


@dataclass
class Machine:
    """Devices by name. Superblocks lie on backing devices and outlive everything else."""

    backings: dict[UUID, Backing] = field(default_factory=dict)
    devices: dict[str, Live] = field(default_factory=dict)
    plexes: dict[str, Plex] = field(default_factory=dict)
    exports: dict[UUID, tuple[str, int]] = field(default_factory=dict)
    unready: set[UUID] = field(default_factory=set)
    read_only: set[str] = field(default_factory=set)
    invalid: set[str] = field(default_factory=set)
    frozen: tuple[str, ...] = ()
    unreadable: set[str] = field(default_factory=set)
    superblocks: dict[Place, Superblock] = field(default_factory=dict)
    made: int = 0

    @classmethod
    def with_drives(cls, document: Document) -> "Machine":
        return cls(
            backings={
                drive.uuid: Backing(device=f"/dev/loop{index}", number=f"7:{index}")
                for index, drive in enumerate(document.drives)
            }
        )

    # What the world does.

    def power_cut(self) -> None:
        """Memory is gone, and md left every bitmap as it was."""
        self.devices, self.plexes, self.exports = {}, {}, {}
        self.unready, self.read_only, self.frozen = set(), set(), ()

    def rebuilt(self) -> None:
        """The kernel has regenerated every leg that it was at."""
        for plex in self.plexes.values():
            plex.letters = ["A" if letter == "a" else letter for letter in plex.letters]

    def copied(self, document: Document) -> None:
        """The kernel has copied all members that move."""
        for lun in document.luns:
            for index, member in enumerate(lun.members):
                if member.successor is not None and member.meta:
                    place = (self.backings[member.successor.drive].number, member.successor.meta[0].start)
                    self.superblocks[place] = self.superblocks[self.place(lun, index)]

    def place(self, lun: Lun, index: int) -> Place:
        """Where a member's superblock lies."""
        member = lun.members[index]
        return self.backings[member.drive].number, member.meta[0].start

    def change(self, name: str, *, suspended: bool | None = None, inactive: bool | None = None) -> None:
        live = self.devices[name]
        self.devices[name] = replace(
            live,
            suspended=live.suspended if suspended is None else suspended,
            inactive=live.inactive if inactive is None else inactive,
        )

    # What is seen of it.

    def observe(self, document: Document) -> Observed:
        live = {device.uuid: replace(device, status=self._status(device)) for device in self.devices.values()}
        # A drive that is out of the array is not looked at, whether its file is there or not.
        online = {drive.uuid for drive in document.drives if drive.online}
        backings = {drive: backing for drive, backing in self.backings.items() if drive in online}
        exports = {
            uuid: Exported(disk="/dev/sda", naa="6001405", size=size, ready=uuid not in self.unready)
            for uuid, (_, size) in self.exports.items()
        }
        seen = Observed(devices=live, backings=backings, exports=exports)
        idle = [lun for lun in document.luns if lun.layout.fault_tolerant and not seen.loaded(lun)]
        superblocks = {
            member.uuid: self.superblocks.get((backings[member.drive].number, member.meta[0].start))
            for lun in idle
            for member in lun.members
            if member.drive in backings
        }
        return Observed(devices=live, backings=backings, exports=exports, superblocks=superblocks)

    def _status(self, device: Live) -> Table:
        if device.table and device.table[0].kind == "snapshot":
            words = "Invalid" if device.name in self.invalid else "16/32768 16"
            return (replace(device.table[0], params=words),)
        if device.table and device.table[0].kind == "dust":
            mode = "fail_read_on_bad_block quiet" if device.name in self.unreadable else "bypass verbose"
            return (replace(device.table[0], params=f"7:0 {mode}"),)
        if device.name not in self.plexes or not device.table or device.table[0].kind != "raid":
            return ()
        kind, letters = device.table[0].params.split()[0], "".join(self.plexes[device.name].letters)
        done, action = (0, "recover") if "a" in letters else (64, "idle")
        text = f"{kind} {len(letters)} {letters} {done}/64 {action} 0 0 -"
        return (TargetLine(start=Sectors(0), length=device.table[0].length, kind="raid", params=text),)

    def state(self) -> dict[str, object]:
        """All that a host or an operator could tell apart; numbers as names, and no raid options that count for one load."""
        by_number = {device.number: device.name for device in self.devices.values()}
        found: dict[str, object] = {}
        for name, device in self.devices.items():
            lines = []
            for line in device.table:
                words = [by_number.get(word, word) for word in line.params.split()]
                if line.kind == "raid":
                    words = [words[0], *words[2 + int(words[1]) :]]
                lines.append((line.start, line.length, line.kind, *words))
            letters = self.plexes[name].letters if name in self.plexes else []
            read_only = name in self.read_only
            found[name] = (device.uuid, lines, device.suspended, device.inactive, letters, read_only)
        for uuid, (node, size) in self.exports.items():
            found[f"export {uuid}"] = (node, "not ready" if uuid in self.unready else size)
        return found

    # What steps do.

    def act(self, step: Step) -> None:
        match step:
            case CreateDevice():
                name = step.device.name
                assert name not in self.devices, f"{name} is taken"
                assert step.device.uuid not in {device.uuid for device in self.devices.values()}
                self._load(name, step.device.uuid, f"253:{self.made}", step.device.table)
                if step.device.read_only:
                    self.read_only.add(name)
                self.made += 1
            case ReplaceTable():
                live = self.devices[step.name]
                assert not live.inactive, f"{step.name} has a table that nobody asked for"
                self._load(step.name, live.uuid, live.number, step.table)
                assert step.read_only == (step.name in self.read_only), "LIO does not notice"
            case Suspend():
                assert self.devices[step.name].table, "there is nothing to suspend"
                self.change(step.name, suspended=True)
            case MarkUnreadable():
                assert self.devices[step.name].table[0].kind == "dust", "the kernel knows no such message"
                self.unreadable.add(step.name)
            case FreezeFilesystems():
                assert not self.frozen, "frozen twice"
                self.frozen = step.devices
            case ThawFilesystems():
                assert not any(device.suspended for device in self.devices.values()), "what thaws writes"
                self.frozen = ()
            case ClearInactive():
                self.change(step.name, inactive=False)
            case Resume():
                self.change(step.name, suspended=False)
            case SettleFailures():
                self._settle(step.name)
                self.change(step.name, suspended=False)
            case RemoveDevice():
                assert not self._users(step.name), f"{step.name} is in use by {self._users(step.name)}"
                del self.devices[step.name]
                self.plexes.pop(step.name, None)
                self.read_only.discard(step.name)
            case RenameDevice():
                assert step.new not in self.devices, f"{step.new} is taken"
                self.devices[step.new] = replace(self.devices.pop(step.name), name=step.new)
                if step.name in self.plexes:
                    self.plexes[step.new] = self.plexes.pop(step.name)
            case ZeroExtent():
                number = self._resolve(self.devices[step.port.removeprefix(NODE)].table[0].params.split()[0])
                self.superblocks.pop((number, step.extent.start), None)
            case ForceResync():
                found = self._place(self.devices[step.port.removeprefix(NODE)].number)
                assert found is not None
                place = (found[0], found[1] + step.sector)
                assert not any(place in plex.places for plex in self.plexes.values()), "a loaded superblock is changed"
                self.superblocks[place] = replace(self.superblocks[place], resync_offset=0)
            case Export():
                assert step.read_only == (step.node.removeprefix(NODE) in self.read_only), "LIO refuses it, or writes"
                self.exports[step.uuid] = (step.node, self._length(step.node.removeprefix(NODE)) if step.ready else 0)
                if not step.ready:
                    self.unready.add(step.uuid)
            case SetReady():
                assert step.ready == (step.uuid in self.unready), "it is that already"
                self.unready ^= {step.uuid}
                if step.ready:
                    node = self.exports[step.uuid][0]
                    self.exports[step.uuid] = (node, self._length(node.removeprefix(NODE)))
            case Unexport():
                del self.exports[step.uuid]
                self.unready.discard(step.uuid)
            case Rescan():
                assert step.uuid not in self.unready, "its size would be 0 from now on"
                node = self.exports[step.uuid][0]
                self.exports[step.uuid] = (node, self._length(node.removeprefix(NODE)))
            case DiscardExtent():
                pass
            case _:
                raise AssertionError(f"converge does not give {step}")

    def _resolve(self, word: str) -> str:
        if word.startswith(NODE):
            return self.devices[word.removeprefix(NODE)].number
        numbers = {backing.device: backing.number for backing in self.backings.values()}
        return numbers[word] if word.startswith("/dev/") else word

    def _length(self, name: str) -> int:
        return sum(line.length for line in self.devices[name].table)

    def _load(self, name: str, uuid: str, number: str, table: Table) -> None:
        table = tuple(
            replace(line, params=" ".join(self._resolve(word) for word in line.params.split())) for line in table
        )
        for line in table:
            self._refuse_short(line)
        if table[0].kind == "snapshot":
            self._refuse_unheld(table[0].params.split()[0])
        live = Live(
            name=name, uuid=uuid, number=number, table=table, status=(), suspended=False, inactive=False, open_count=0
        )
        if table[0].kind == "raid":
            self._load_raid(name, table[0].params.split())
        self.devices[name] = live
        self.unreadable.discard(name)

    def _refuse_short(self, line: TargetLine) -> None:
        """The kernel looks at a table's devices when it is loaded, and never again."""
        words = line.params.split()
        match line.kind:
            case "linear":
                needed = {words[0]: int(words[1]) + line.length}
            case "mirror":
                legs = words[3 + int(words[1]) :]
                needed = {legs[0]: int(legs[1]) + line.length, legs[2]: int(legs[3]) + line.length}
            case "snapshot" | "snapshot-origin":
                needed = {words[0]: line.length}
            case "raid":
                legs = words[4 + int(words[1]) :: 2]
                parity = {"raid4": 1, "raid5_ls": 1, "raid6_zr": 2}
                width = {"raid1": 1, "raid10": len(legs) // 2}.get(words[0], len(legs) - parity.get(words[0], 0))
                needed = dict.fromkeys(legs, line.length // width)
            case _:
                needed = {}
        for live in self.devices.values():
            end = sum(own.length for own in live.table)
            assert needed.get(live.number, 0) <= end, f"{line} reaches beyond the {end} sectors of {live.name}"

    def _refuse_unheld(self, plex: str) -> None:
        """While a shadow copy is made nobody writes to its origin: past the device that saves what is overwritten, or through
        one that is not resumed afterwards, and so does not look at the new shadow copy's chunks.
        """
        for live in self.devices.values():
            if any(
                line.kind in ("linear", "snapshot-origin", "mirror") and plex in line.params.split()
                for line in live.table
            ):
                assert live.suspended, f"{live.name} writes to an origin while a shadow copy of it is made"

    def _refuse_past(self) -> None:
        """What is written to a LUN with shadow copies goes through its device `origin`."""
        numbers = {live.number: live for live in self.devices.values()}
        origins = {
            line.params.split()[0]
            for live in self.devices.values()
            for line in live.table
            if line.kind == "snapshot" and live.name not in self.invalid
        }
        for live in self.devices.values():
            if live.suspended or (live.table and live.table[0].kind in ("snapshot", "snapshot-origin")):
                continue
            past = origins & {word for line in live.table for word in line.params.split()}
            assert not past, f"{live.name} writes past the shadow copies of {[numbers[one].name for one in past]}"

    def _load_raid(self, name: str, words: list[str]) -> None:
        options = words[2 : 2 + int(words[1])]
        rebuild = [int(options[at + 1]) for at, word in enumerate(options) if word == "rebuild"]
        pairs = words[3 + int(words[1]) :]
        metas = pairs[::2]
        if metas[0] == "-":  # raid0 keeps nothing.
            self.plexes[name] = Plex([None] * len(metas), ["A"] * len(metas))
            return
        places = [self._place(meta) for meta in metas]
        known = [place in self.superblocks for place in places if place is not None]
        before = self.plexes.get(name)
        letters = []
        for index, place in enumerate(places):
            if place is not None and any(known) and place not in self.superblocks:
                assert index in rebuild, f"leg {index} of {name} is new: the kernel wants to be told to rebuild it"
            known_failed = before is not None and before.places[index] == place and before.letters[index] == "D"
            letters.append("a" if index in rebuild else "D" if known_failed else "A")
            if place is not None and (place not in self.superblocks or index in rebuild):
                self.superblocks[place] = Superblock(
                    legs=len(metas), position=index, events=1, failed=0, recovery_offset=None, resync_offset=None
                )
        self.plexes[name] = Plex(places, letters)
        if rebuild:  # It begins at once, and md writes that down.
            self._write_down(name)

    def _write_down(self, name: str) -> None:
        """md's next superblocks, on the legs that work: which legs do not."""
        plex = self.plexes[name]
        working = [place for place, letter in zip(plex.places, plex.letters, strict=True) if place and letter != "D"]
        events = 1 + max((self.superblocks[place].events for place in working), default=0)
        failed = sum(1 << index for index, letter in enumerate(plex.letters) if letter == "D")
        for place in working:
            self.superblocks[place] = replace(self.superblocks[place], events=events, failed=failed)

    def _place(self, number: str) -> Place | None:
        """Where a leg's first sector is; None where reading it fails."""
        offset = 0
        while not number.startswith("7:"):
            line = next(device.table[0] for device in self.devices.values() if device.number == number)
            if line.kind == "error":
                return None
            words = line.params.split()
            if (
                line.kind == "mirror"
            ):  # All reads are answered from the first leg: log and its words, number of legs, legs.
                words = words[3 + int(words[1]) :]
            else:
                assert line.kind == "linear"
            number, start = words[:2]
            offset += int(start)
        return number, offset

    def _settle(self, name: str) -> None:
        """md gives up legs that fail it, but never the last one of a mirror."""
        metas = self.devices[name].table[0].params.split()
        metas = metas[3 + int(metas[1]) :: 2]
        plex = self.plexes[name]
        for index, meta in enumerate(metas):
            if self._place(meta) is None and [letter for letter in plex.letters if letter != "D"] != [
                plex.letters[index]
            ]:
                plex.letters[index] = "D"
        self._write_down(name)

    def _users(self, name: str) -> list[str]:
        number = self.devices[name].number
        found = [
            device.name
            for device in self.devices.values()
            if any(number in line.params.split() for line in device.table)
        ]
        return found + [str(uuid) for uuid, (node, _) in self.exports.items() if node == NODE + name]

    # What the engine does.

    def prepare(self, proposal: Proposal) -> Document:
        for step in proposal.prepare:
            self.act(step)
        return proposal.document

    def plan(self, document: Document, *, unclean: bool = False) -> list[Step]:
        groups = converge(document, self.observe(document), unclean=unclean)
        return [step for group in groups for step in group.steps]

    def run(self, document: Document, *, unclean: bool = False, limit: int | None = None) -> list[Step]:
        """Carry the plan out, or its first `limit` steps; return it whole. What a dead process has frozen is thawed before."""
        self.frozen = ()
        plan = self.plan(document, unclean=unclean)
        for step in plan[:limit]:
            self.act(step)
            self._refuse_past()
        return plan


def running(document: Document) -> Machine:
    """A machine on which the array runs, all of it in sync."""
    machine = Machine.with_drives(document)
    machine.run(document)
    return machine


def kinds(steps: list[Step]) -> list[str]:
    return [type(step).__name__ for step in steps]
