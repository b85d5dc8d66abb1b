"""Lines in the log about peers that misbehave: a few, and then a number, however many such peers there are.

They are warnings.  Often somebody has made a mistake that only the log can tell them: a client cannot read why its
certificate was refused, and gRPC's do not say what they have heard.
"""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from artifactserver.rpc.http2.rates import Allowance


class Complaints:
    """What is said about one kind of peers.

    :param log: where it is said.
    :param clock: the reactor, or what stands for it in a test.
    :param per_second: lines in the long run.
    :param at_once: lines about the first of them.
    """

    def __init__(self, log: Logger, clock: IReactorTime, per_second: float = 1.0, at_once: int = 20) -> None:
        self._log = log
        self._clock = clock
        self._allowance = Allowance(per_second, at_once)
        self._unsaid = 0

    def say(self, template: str, **fields: object) -> None:
        """Log what a peer did, unless too much has been said already; then it is counted in the next line."""
        if not self._allowance.spend(self._clock.seconds()):
            self._unsaid += 1
            return
        if self._unsaid:
            template += ", and {unsaid} like it"
            fields["unsaid"] = self._unsaid
            self._unsaid = 0
        self._log.warn(template, **fields)
