"""Who shows a token: what a client presents with a call or a request is looked up here, whatever port it came by.

The tokens in force stand in one place, `Authentication.tokens`, and to put others there is all that it takes to replace
them.  Each connection has a `Visit`, which remembers what it was shown for as long as those tokens are in force, so
that the next call with the same token costs one look-up.  It also remembers on which tokens the connection relies, so
that the connection can be ended when one of them is taken away.

A token that is not good is refused everywhere, also where nobody needs one: whoever sends it believes in it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IAddress

from artifactserver.access import Caller, Identity, Refusal
from artifactserver.addresses import caller_at
from artifactserver.tokens.attempts import Attempts, Held
from artifactserver.tokens.known import Token, Tokens, credentials

#: Values of ``authorization`` fields that are remembered of one connection, and bytes of each; longer ones are looked
#: up each time.  A proxy may bring many clients over one connection.
REMEMBERED_VALUES = 32
REMEMBERED_VALUE_BYTES = 512

#: Tokens on which one connection is known to rely; with more it relies on all.
REMEMBERED_TOKENS = 32

#: The answer to a token that is not good.
INVALID = Refusal(
    True,
    "the token that you have shown is malformed, was revoked, or belongs to another server: give a valid one, or none",
)


def challenges(*, invalid: bool) -> list[bytes]:
    """The values of HTTP's ``WWW-Authenticate`` that ask for a token (RFC 7617, section 2; RFC 6750, section 3).

    :param invalid: whether one was shown that is not good.
    """
    why = b', error="invalid_token"' if invalid else b""
    return [b'Basic realm="artifactserver", charset="UTF-8"', b'Bearer realm="artifactserver"' + why]


class Authentication:
    """What is shared by all connections.

    :param tokens: those that are good.
    :ivar tokens: the same.
    :ivar catch_up: called when a token is not found, to put others that have come since; says whether there are any.
    """

    def __init__(self, tokens: Tokens, attempts: Attempts) -> None:
        self.tokens = tokens
        self.catch_up: Callable[[], bool] = lambda: False
        self.attempts = attempts
        self.relying: set[Visit] = set()

    def replace(self, tokens: Tokens) -> None:
        """Let others be good from now on."""
        self.tokens = tokens

    def visit(self, caller: Caller, peer: IAddress, connection: object) -> Visit:
        """Begin to look after a connection; `Visit.leave` has to follow.

        :param caller: who is at its other end, as far as is known without a token.
        :param connection: what serves it.
        """
        return Visit(self, caller, peer, connection)

    def forgotten(self) -> list[Any]:
        """The connections that have relied on a token which has since been taken away, or lost a right."""
        return [visit.connection for visit in self.relying if visit.is_forgotten()]


class Visit:
    """One connection, and the tokens that are shown on it.

    :ivar connection: what serves it, until it is over.
    """

    __slots__ = (
        "_authentication",
        "_caller",
        "_callers",
        "_peer",
        "_relies_on",
        "_relies_on_all",
        "_tokens",
        "connection",
    )

    def __init__(self, authentication: Authentication, caller: Caller, peer: IAddress, connection: object) -> None:
        self._authentication = authentication
        self._caller = caller
        self._peer = peer
        self.connection: Any = connection
        self._tokens = authentication.tokens
        # Who calls with which value, while those tokens are in force.
        self._callers: dict[bytes, Caller] = {}
        self._relies_on: set[Token] = set()
        self._relies_on_all: Tokens | None = None

    def caller(self, authorization: bytes) -> Caller | None:
        """Who calls that shows this.

        :param authorization: the value of an ``authorization`` field.
        :return: the caller with what the token adds; `None` if it is not good, which has to lead to `refuse`.
        """
        known = self._known(authorization)
        if known is None and self._authentication.catch_up():
            known = self._known(authorization)
        return known

    def _known(self, authorization: bytes) -> Caller | None:
        if self._tokens is not self._authentication.tokens:
            self._tokens = self._authentication.tokens
            self._callers.clear()
        return self._callers.get(authorization) or self._look_up(authorization)

    def _look_up(self, authorization: bytes) -> Caller | None:
        secret = credentials(authorization)
        token = self._tokens.find(secret) if secret is not None else None
        if token is None:
            return None
        self._rely_on(token)
        before = self._caller
        identity = Identity("token", token.name, f"token {token.name}", token.rights)
        caller = Caller(before.address, before.port, (*before.identities, identity))
        if len(authorization) <= REMEMBERED_VALUE_BYTES:
            if len(self._callers) >= REMEMBERED_VALUES:
                self._callers.clear()
            self._callers[authorization] = caller
        return caller

    def _rely_on(self, token: Token) -> None:
        self._authentication.relying.add(self)
        if token in self._relies_on:
            return
        if len(self._relies_on) < REMEMBERED_TOKENS:
            self._relies_on.add(token)
        else:
            self._relies_on_all = self._tokens

    def is_forgotten(self) -> bool:
        """Whether a token that was shown here has been taken away since, or lost a right."""
        tokens = self._authentication.tokens
        if self._relies_on_all not in (None, tokens):
            return True
        return any(not tokens.still_hold(token) for token in self._relies_on)

    def refuse(self, answer: Callable[[], None]) -> Held | None:
        """Count a token that is not good, and call ``answer`` after a while; see `Attempts.hold`."""
        return self._authentication.attempts.hold(caller_at(self._peer), answer)

    def leave(self) -> None:
        """The connection is over."""
        self._authentication.relying.discard(self)
        self._callers.clear()
        self.connection = None
