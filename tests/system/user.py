"""In the guest, as somebody who is not root: org.blkrecov1 as far as the bus lets them.

Run by Debian's Python with the libraries that the package brings, for a working tree may be closed to others: python3 -I user.py
CALLS. It prints a line when it listens, waits for one, and prints what each call was answered, and what it heard by then.
"""

import asyncio
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.append("/usr/lib/blkrecov")

from dbus_fast import BusType, Message, MessageType, Variant, unpack_variants
from dbus_fast.aio import MessageBus
from dbus_fast.signature import SignatureType, get_signature_tree


def nothing(kind: SignatureType) -> Any:
    """A value of this type."""
    match kind.token:
        case "a":
            return {} if kind.children[0].token == "{" else []
        case "(":
            return [nothing(child) for child in kind.children]
        case "v":
            return Variant("s", "")
        case "s":
            return ""
        case "o":
            return "/"
        case "b":
            return False
        case _:
            return 0


async def answers(calls: list[dict[str, Any]]) -> None:
    bus = await MessageBus(bus_type=BusType.SYSTEM).connect()
    heard: Counter[str] = Counter()

    def hear(message: Message) -> None:
        if message.message_type is MessageType.SIGNAL and (message.path or "").startswith("/org/blkrecov1"):
            heard[message.member or ""] += 1

    async def ask(**words: Any) -> Any:
        """What is answered: a value, or the error's name."""
        types = get_signature_tree(words["signature"]).types
        usual = {"destination": "org.blkrecov1", "body": [nothing(kind) for kind in types]}
        reply = await bus.call(Message(**{**usual, **words}))
        assert reply is not None
        return reply.error_name if reply.error_name else unpack_variants(reply.body)

    bus.add_message_handler(hear)
    listening = {"destination": "org.freedesktop.DBus", "path": "/", "interface": "org.freedesktop.DBus"}
    await ask(**listening, member="AddMatch", signature="s", body=["type='signal'"])
    print("listening", flush=True)
    sys.stdin.readline()
    answered = [await ask(**call) for call in calls]
    print(json.dumps({"heard": heard, "answers": answered}))


if __name__ == "__main__":
    asyncio.run(answers(json.loads(Path(sys.argv[1]).read_text())))
