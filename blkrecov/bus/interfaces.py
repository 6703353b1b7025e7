"""org.blkrecov1 as data: every interface with its properties, methods and signals, and the introspection data made of it. Pure.

Types are D-Bus signatures: sizes and rates are t (bytes, bytes per second), object paths o, where "/" is none. Every method ends
with options, a{sv}; which ones it knows stands beside it, and an option that it does not know is refused.

The texts go into the introspection data as org.gtk.GDBus.DocString, so what is written here is the documentation.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape
from typing import Final

NAME: Final = "org.blkrecov1"
ERRORS: Final = f"{NAME}.Error."
MANAGER: Final = f"{NAME}.Manager"
ARRAY: Final = f"{NAME}.Array"
DRIVE: Final = f"{NAME}.Drive"
LUN: Final = f"{NAME}.Lun"
SHADOW: Final = f"{NAME}.ShadowCopy"
TASK: Final = f"{NAME}.Task"
SESSION: Final = f"{NAME}.RestoreSession"

INTROSPECTABLE: Final = "org.freedesktop.DBus.Introspectable"
PROPERTIES: Final = "org.freedesktop.DBus.Properties"
PEER: Final = "org.freedesktop.DBus.Peer"
OBJECT_MANAGER: Final = "org.freedesktop.DBus.ObjectManager"

_DOCTYPE: Final = (
    '<!DOCTYPE node PUBLIC "-//freedesktop//DTD D-BUS Object Introspection 1.0//EN"\n'
    ' "http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd">\n'
)


@dataclass(frozen=True, slots=True)
class Argument:
    name: str
    type: str


@dataclass(frozen=True, slots=True)
class Property:
    name: str
    type: str
    about: str


@dataclass(frozen=True, slots=True)
class Method:
    """`options` are the types by name; None for the standard interfaces' methods, which take none. What only reads may be called
    by the group: the bus's policy has the same list (blkrecov/data/org.blkrecov1.conf).
    """

    name: str
    takes: tuple[Argument, ...]
    gives: tuple[Argument, ...]
    about: str
    options: Mapping[str, str] | None = None
    reads: bool = False

    @property
    def signature(self) -> str:
        return "".join(argument.type for argument in self.takes)

    @property
    def result(self) -> str:
        return "".join(argument.type for argument in self.gives)


@dataclass(frozen=True, slots=True)
class Signal:
    name: str
    gives: tuple[Argument, ...]
    about: str


@dataclass(frozen=True, slots=True)
class Interface:
    name: str
    about: str
    properties: tuple[Property, ...] = ()
    methods: tuple[Method, ...] = ()
    signals: tuple[Signal, ...] = ()

    def method(self, name: str) -> Method | None:
        return next((method for method in self.methods if method.name == name), None)

    def property(self, name: str) -> Property | None:
        return next((item for item in self.properties if item.name == name), None)


def _arguments(words: str) -> tuple[Argument, ...]:
    """From "name:type name:type"."""
    return tuple(Argument(*word.split(":")) for word in words.split())


def _method(name: str, takes: str, gives: str, about: str, options: str = "", *, reads: bool = False) -> Method:
    known = {argument.name: argument.type for argument in _arguments(options)}
    words = f" Options: {', '.join(f'{key} ({type_})' for key, type_ in known.items())}." if known else ""
    return Method(name, _arguments(f"{takes} options:a{{sv}}"), _arguments(gives), about + words, known, reads)


def _plain(name: str, takes: str, gives: str) -> Method:
    return Method(name, _arguments(takes), _arguments(gives), "")


_PLAN: Final = _method(
    "Plan",
    "method:s arguments:av",
    "steps:as",
    "The steps that a method of this object would take with these arguments (its options left out or last), after all of its "
    "checks. Nothing is done.",
)

STANDARD: Final = (
    Interface(INTROSPECTABLE, "", methods=(_plain("Introspect", "", "xml:s"),)),
    Interface(PEER, "", methods=(_plain("Ping", "", ""), _plain("GetMachineId", "", "id:s"))),
    Interface(
        PROPERTIES,
        "",
        methods=(
            _plain("Get", "interface:s name:s", "value:v"),
            _plain("GetAll", "interface:s", "values:a{sv}"),
            _plain("Set", "interface:s name:s value:v", ""),
        ),
        signals=(Signal("PropertiesChanged", _arguments("interface:s changed:a{sv} invalidated:as"), ""),),
    ),
)
MANAGED: Final = Interface(
    OBJECT_MANAGER,
    "",
    methods=(_plain("GetManagedObjects", "", "objects:a{oa{sa{sv}}}"),),
    signals=(
        Signal("InterfacesAdded", _arguments("object:o interfaces:a{sa{sv}}"), ""),
        Signal("InterfacesRemoved", _arguments("object:o interfaces:as"), ""),
    ),
)

INTERFACES: Final = {
    interface.name: interface
    for interface in (
        Interface(
            MANAGER,
            "The arrays of this machine.",
            properties=(
                Property("Version", "s", "The program's version."),
                Property("StateDirectory", "s", "Where it remembers arrays: programs that have another know others."),
                Property("Arrays", "ao", "The arrays that are known, by name."),
            ),
            methods=(
                _method(
                    "CreateArray",
                    "name:s",
                    "array:o",
                    "Make an array. It is written onto its drives, from the first one on that is added.",
                ),
                _method(
                    "OpenArray",
                    "uuid:s",
                    "array:o",
                    "Look after an array from now on: one that is new on this machine is left alone until somebody asks for it.",
                ),
                _method(
                    "GetArrays",
                    "",
                    "json:s",
                    "The arrays of this machine, found anew, as JSON; also those in trouble.",
                    reads=True,
                ),
            ),
        ),
        Interface(
            ARRAY,
            "An array: drives that know each other, and the LUNs made of them.",
            properties=(
                Property("Name", "s", ""),
                Property("Uuid", "s", ""),
                Property("Sequence", "t", "The version of the configuration. It grows with every change."),
                Property(
                    "Running", "b", "False while the array is stopped: a method that needs it brings it up again."
                ),
                Property("Healthy", "b", "Whether it runs, every drive is online and every LUN healthy."),
                Property("Trouble", "s", "Why it cannot be opened or looked after; empty if it can."),
                Property("AutoRecover", "s", "on, off, or default: where there is a hot spare."),
                Property("Scrub", "s", "How often LUNs are scrubbed: off, weekly or monthly."),
                Property(
                    "RateMin", "t", "What a task is given per second and drive whatever else goes on; 0: the default."
                ),
                Property("RateMax", "t", "What a task never exceeds per second and drive; 0: the default."),
                Property("Drives", "ao", ""),
                Property("Luns", "ao", "All LUNs, shadow copies among them."),
                Property("ShadowCopies", "ao", ""),
                Property("Tasks", "ao", "Those under way, and the last that have ended."),
            ),
            methods=(
                _method(
                    "AddDrive",
                    "path:s",
                    "drive:o",
                    "Make a drive of a new file (with a size), an existing one, or a block device.",
                    "size:t name:s spare:b force:b",
                ),
                _method(
                    "CreateLun",
                    "name:s layout:s size:t",
                    "lun:o",
                    "Make a LUN. It can be used at once; its members are synchronised meanwhile.",
                    "drives:as members:u export:b",
                ),
                _method(
                    "CreateShadowCopies",
                    "pairs:a(os)",
                    "shadow_copies:ao task:o",
                    "Shadow copies of several LUNs, all of one moment: (LUN, the shadow copy's name). The task fills plexes.",
                    "plex:b store:t chunk:t layout:s drives:as export:b",
                ),
                _method(
                    "Configure",
                    "",
                    "",
                    "Change how the array looks after itself. What is not given stays as it is.",
                    "auto-recover:s scrub:s rate-min:t rate-max:t",
                ),
                _method("InitializeForRestore", "", "session:o", "Open a restore session. It ends with its client."),
                _method("Reenumerate", "", "arrived:as departed:as missing:as", "Look for the array's drives anew."),
                _method("Refresh", "", "", "Read the properties of all that is known anew, and bring up what is down."),
                _method(
                    "GetObjects", "", "json:s", "MS-DMRP's list of storage objects and tasks, as JSON.", reads=True
                ),
                _method(
                    "GetEvents",
                    "",
                    "json:s",
                    "What happened, oldest first, as JSON; the last so many.",
                    "last:u",
                    reads=True,
                ),
                _method(
                    "Stop", "", "", "Take the array out of the kernel in good order. Refused while a LUN is in use."
                ),
                _method(
                    "Find",
                    "kind:s name:s",
                    "object:o",
                    "The object of this name, UUID or number; kind is drive, lun or task. The error for one that was deleted is "
                    "another than for one that never was.",
                    reads=True,
                ),
                _method(
                    "GetState",
                    "",
                    "json:s",
                    "All that is shown of the array, looked at anew, as JSON. What takes too long is answered as it was known "
                    "before; then stale says what the array is at.",
                    reads=True,
                ),
                _method(
                    "GetActivity",
                    "",
                    "json:s",
                    "The counters of drives, LUNs and tasks, as JSON: two tell how busy they are.",
                    reads=True,
                ),
                _PLAN,
            ),
            signals=(
                Signal(
                    "Event",
                    _arguments("kind:s message:s remedy:s time:d objects:ao"),
                    "Something happened, whoever has done it: a line of blkrecov events. The remedy is empty where nothing is to "
                    "be done; time is in seconds since 1970; objects are what it is about, of those that are there.",
                ),
            ),
        ),
        Interface(
            DRIVE,
            "A drive: a file or block device that LUNs are made of.",
            properties=(
                Property("Name", "s", ""),
                Property("Uuid", "s", ""),
                Property("Array", "o", ""),
                Property("Path", "s", ""),
                Property("Size", "t", ""),
                Property("Free", "t", ""),
                Property("Status", "s", "VDS_DRIVE_STATUS in lower case without prefix."),
                Property("Health", "s", "VDS_HEALTH in lower case without prefix."),
                Property("Reason", "s", "Why it is not online."),
                Property(
                    "Failing", "s", "Why it is set aside: it is given nothing more. Empty for a drive that is well."
                ),
                Property("Failures", "u", "How often it failed lately."),
                Property("HotSpare", "b", ""),
                Property(
                    "Fault", "(sd)", "What was injected, and its value: after, error_rate, slow, drop_writes or empty."
                ),
                Property("Luns", "ao", "The LUNs that have something on it."),
                Property("Regions", "a(sttsss)", "All of it in order: id, start, length, role, LUN's name, status."),
            ),
            methods=(
                _method(
                    "Fail",
                    "",
                    "",
                    "Take the drive for failed; or, with one option, have it misbehave until it is reconnected: seconds, "
                    "percent, milliseconds.",
                    "after:t error-rate:d slow:t drop-writes:b",
                ),
                _method(
                    "Reconnect",
                    "",
                    "task:o",
                    "Bring back a drive that failed or was away, with all that lives on it.",
                    "path:s force:b",
                ),
                _method("Replace", "", "tasks:ao", "Move all that is on it elsewhere while it is in use.", "onto:o"),
                _method("Remove", "", "task:o", "Move all that is on it to others, then take it out of the array."),
                _method("SetHotSpare", "spare:b", "", "Keep it free until a member of a LUN is lost, or no longer."),
                _method("Trust", "", "", "Give a drive that was set aside another chance."),
                _PLAN,
            ),
        ),
        Interface(
            LUN,
            "A LUN: a disk that the array shows to this machine.",
            properties=(
                Property("Name", "s", ""),
                Property("Uuid", "s", ""),
                Property("Array", "o", ""),
                Property("Layout", "s", ""),
                Property("Size", "t", ""),
                Property("Status", "s", "VDS_LUN_STATUS in lower case without prefix."),
                Property("Health", "s", "VDS_HEALTH in lower case without prefix."),
                Property("Trouble", "s", "Why it could not be brought up, or cannot be used; else empty."),
                Property("Incomplete", "s", "Why its contents are not whole, and it is not ready; empty if they are."),
                Property("Device", "s", "Its SCSI disk, /dev/sdX; empty if it has none."),
                Property("Node", "s", "Its device-mapper node."),
                Property("Naa", "s", "Its page-83 identity, NAA type 6."),
                Property("Verified", "b", "Whether configuration, sysfs and udev agree on that."),
                Property("FaultTolerant", "b", ""),
                Property("FaultTolerance", "u", "How many more members may be lost, whichever they are."),
                Property("Members", "a(uost)", "Index, drive, state, size."),
                Property("Chunk", "t", ""),
                Property("Region", "t", ""),
                Property("Mismatches", "x", "What the last scrub counted, in sectors; -1 before the first."),
                Property("SyncAction", "s", "What the kernel is at: resync, recover, check, repair; empty when idle."),
                Property("Mounts", "a(ss)", "Mount point, type of file system."),
                Property("Task", "o", "The task that is under way on it."),
            ),
            methods=(
                _method(
                    "Recover",
                    "",
                    "task:o",
                    "Bring it back to full redundancy (IVdsLun::Recover).",
                    "spare:o rate-min:t rate-max:t",
                ),
                _method("Scrub", "", "task:o", "Compare all members, and count where they disagree.", "repair:b"),
                _method("Extend", "size:t", "", "Make it larger while it is used. The new size, not the difference."),
                _method("Delete", "", "", "Delete it with all that is on it. Refused while anything uses it."),
                _method(
                    "CreateShadowCopy",
                    "name:s",
                    "shadow_copy:o task:o",
                    "Take a shadow copy. The task fills a plex.",
                    "plex:b store:t chunk:t layout:s drives:as export:b",
                ),
                _method(
                    "Verify",
                    "",
                    "verified:b witnesses:a(sss) trouble:s",
                    "The page-83 gate: who says that it has which identity, and where; and in what they contradict each other.",
                    reads=True,
                ),
                _method(
                    "GetInformation",
                    "",
                    "json:s",
                    "Its VDS_LUN_INFORMATION, by which a restore session finds it.",
                    reads=True,
                ),
                _PLAN,
            ),
        ),
        Interface(
            SHADOW,
            "What makes a LUN a shadow copy. It stands beside the interface of the LUN.",
            properties=(
                Property("Origin", "o", 'The LUN that it was taken of; "/" where that is gone.'),
                Property("OriginName", "s", "That LUN's name; its UUID where it is gone."),
                Property("Kind", "s", "differential or plex."),
                Property("Taken", "t", "When, in seconds since 1970."),
                Property("StoreSize", "t", "Room for what the origin changes; 0 for a plex."),
                Property("StoreUsed", "t", ""),
                Property("StoreChunk", "t", "What a first change copies."),
                Property("Lost", "s", "Why it has lost its contents; empty if it has not."),
            ),
            methods=(
                _method("Extend", "store:t", "", "Give it more room. The store's new size, not the difference."),
                _method("Delete", "", "", "Delete it. Its origin stays as it is."),
                _PLAN,
            ),
        ),
        Interface(
            TASK,
            "A long operation. It goes on whoever waits for it, over restarts of the daemon and of the machine.",
            properties=(
                Property("Id", "u", ""),
                Property("Array", "o", ""),
                Property("Kind", "s", "recover, scrub, replace, snapshot, resync or reconnect."),
                Property("Objects", "as", "Names of what it works on."),
                Property("State", "s", "queued, in_progress, completed, cancelled or failed."),
                Property("Phase", "s", "What is being done now; empty when nothing is left."),
                Property("Paused", "b", ""),
                Property("Percent", "u", "It never falls, is 0 after a failure, and 100 at the very end."),
                Property("Done", "t", "How many bytes of its present phase are done."),
                Property("Total", "t", "Of how many; 0 where that cannot be told."),
                Property("Why", "s", "What it does and why, as told when it was begun."),
                Property("Result", "s", "The result code's name; S_OK until it has ended."),
                Property("HResult", "u", "Its number."),
                Property("Message", "s", "What came of it."),
                Property("Remedy", "s", "What to do about that."),
                Property("BytesKernel", "t", "What the kernel moved for it."),
                Property("BytesProcess", "t", "What our processes read and wrote for it."),
                Property("RateMin", "t", "0: the array's."),
                Property("RateMax", "t", "0: the array's."),
            ),
            methods=(
                _method("GetTaskInfo", "", "json:s", "It as MS-DMRP's TASK_INFO, as JSON.", reads=True),
                _method("Cancel", "", "", "Stop it."),
                _method("Pause", "", "", "Hold it up until it is resumed, over restarts too."),
                _method("Resume", "", "", "Let it go on."),
                _method("SetRates", "", "", "Change how fast it may go; 0 is the array's.", "rate-min:t rate-max:t"),
                _method(
                    "Wait",
                    "",
                    "state:s result:s hresult:u message:s remedy:s",
                    "Wait until it has ended, or for so many seconds. Callers have a timeout of their own, 25 s by default.",
                    "timeout:d",
                    reads=True,
                ),
            ),
            signals=(
                Signal(
                    "Completed",
                    _arguments("state:s result:s hresult:u message:s remedy:s"),
                    "It has ended, one way or another.",
                ),
            ),
        ),
        Interface(
            SESSION,
            "A restore (IVssBackupComponents): AddSnapshotToRecoverySet, RecoverSet. It ends with its client, or by End; what it "
            "has begun goes on. Only its client may call it.",
            properties=(
                Property("Owner", "s", "Its client's unique name."),
                Property("Array", "o", ""),
                Property("Task", "o", "What was begun."),
            ),
            methods=(
                _method(
                    "Add",
                    "source:s target:s",
                    "",
                    "A shadow copy and the LUN that it is put on: its origin if that is empty, a new one for a name that no LUN "
                    "has. Each is a name, a UUID, an object path, or VDS_LUN_INFORMATION as JSON.",
                ),
                _method(
                    "Resync",
                    "",
                    "task:o",
                    "ResyncLuns: put all pairs back, or none. force: page-83 identities of targets, in full.",
                    "undo:b verify:b no-volume-check:b revert-identity:b force:as",
                ),
                _method(
                    "Plan",
                    "",
                    "steps:as",
                    "The steps that Resync would take. Nothing is done.",
                    "undo:b verify:b no-volume-check:b revert-identity:b force:as",
                ),
                _method("Status", "", "code:s hresult:u", "IVssAsync::QueryStatus."),
                _method("Cancel", "", "code:s hresult:u", "IVssAsync::Cancel."),
                _method("End", "", "", "End the session."),
            ),
        ),
    )
}


def introspection(interfaces: Iterable[Interface], children: Iterable[str]) -> str:
    """The XML of an object with these interfaces, beside the standard ones, and children by name.

    Source: D-Bus specification, "Introspection Data Format".
    """
    lines = [f"{_DOCTYPE}<node>"]
    for interface in (*interfaces, *STANDARD):
        lines += _interface(interface)
    lines += [f'  <node name="{escape(child)}"/>' for child in children]
    return "\n".join((*lines, "</node>")) + "\n"


def _interface(interface: Interface) -> Iterable[str]:
    yield f'  <interface name="{interface.name}">'
    yield from _about(interface.about, 4)
    for method in interface.methods:
        yield f'    <method name="{method.name}">'
        yield from _about(method.about, 6)
        yield from (f'      <arg name="{item.name}" type="{item.type}" direction="in"/>' for item in method.takes)
        yield from (f'      <arg name="{item.name}" type="{item.type}" direction="out"/>' for item in method.gives)
        yield "    </method>"
    for signal in interface.signals:
        yield f'    <signal name="{signal.name}">'
        yield from _about(signal.about, 6)
        yield from (f'      <arg name="{item.name}" type="{item.type}"/>' for item in signal.gives)
        yield "    </signal>"
    for item in interface.properties:
        yield f'    <property name="{item.name}" type="{item.type}" access="read">'
        yield from _about(item.about, 6)
        yield "    </property>"
    yield "  </interface>"


def _about(text: str, indent: int) -> Iterable[str]:
    if text:
        yield f'{" " * indent}<annotation name="org.gtk.GDBus.DocString" value="{escape(text)}"/>'
