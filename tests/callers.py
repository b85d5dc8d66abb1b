"""Those who call in tests: somebody who may pull, somebody who may push, and somebody who may do neither."""

from __future__ import annotations

from collections.abc import Iterable

from artifactserver.access import PUSHING, Caller, PortPolicy, Right


def caller(rights: Iterable[Right], enable_push: bool = True) -> Caller:
    """Somebody anonymous who may do this, on a port where others may do more.

    :param enable_push: whether anybody may push at all.
    """
    return Caller("peer", PortPolicy("main", frozenset(rights), PUSHING, enable_push, frozenset({"certificate"})))


NOBODY = caller([])
PULLER = caller([Right.PULL])
PUSHER = caller([Right.PULL, Right.PUSH])
