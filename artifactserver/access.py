"""Who is calling, and what they may do.

A transport describes its peer with a frozen `Caller`; one table says which `Right` each method needs; `Access` puts
the two together.  Services never ask: by the time a handler runs, the question has been answered (design, section 5).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Right(enum.Enum):
    """What a method demands of its caller."""

    #: Reading: blobs, artifacts, sources, capabilities.
    PULL = "pull"
    #: Everything that changes the store, probes with nothing in them included.
    PUSH = "push"
    #: Open to whoever can connect.
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Caller:
    """The peer of one connection.

    :ivar address: where it calls from, for the log.
    :ivar identity: what its credentials prove it to be, or `None` for somebody anonymous.
    :ivar rights: what its identities allow it, all together.
    """

    address: str
    identity: str | None = None
    rights: frozenset[Right] = frozenset({Right.PULL})

    def may(self, right: Right) -> bool:
        """Whether this caller holds ``right``."""
        return right is Right.NONE or right in self.rights


#: The right that each RPC needs, by its path: ``/package.Service/Method``.
METHODS: dict[str, Right] = {}


class Access:
    """Decides, before a handler runs, whether a caller may use a method.

    :param enable_push: whether anybody at all may push.
    """

    def __init__(self, enable_push: bool) -> None:
        self.enable_push = enable_push

    def refusal(self, caller: Caller, path: str) -> str | None:
        """Why ``caller`` may not call ``path``: a sentence for a user, or `None` if they may."""
        right = METHODS.get(path, Right.PUSH)
        if right is Right.PUSH and not self.enable_push:
            return "this server does not accept uploads: it was started without --enable-push"
        if not caller.may(right):
            return f"this needs the right to {right.value}, which you have not been given"
        return None
