"""How many connections there may be."""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import capturedLogs
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from artifactserver.addresses import caller_at
from artifactserver.ports import admission
from artifactserver.ports.accepted import UnixPeer
from artifactserver.ports.admission import Admission, AdmittingFactory, most_connections

GONE = Failure(ConnectionDone())


class Guest(Protocol):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self.lost: list[Failure] = []

    def dataReceived(self, data: bytes) -> None:
        self.heard.append(data)

    def connectionLost(self, reason: Failure = GONE) -> None:
        self.lost.append(reason)


class House(Factory):
    noisy = False
    full = False

    def buildProtocol(self, addr: object) -> Guest | None:
        return None if self.full else Guest()


def at(host: str) -> IAddress:
    return (IPv6Address if ":" in host else IPv4Address)("TCP", host, 1)


class AdmissionTests(SynchronousTestCase):
    """Who is let in."""

    def setUp(self) -> None:
        self.admission = Admission(in_all=5, per_address=3)
        self.clock = Clock()
        self.house = House()
        self.port = AdmittingFactory(self.house, self.admission, self.clock)

    def connect(self, host: str, port: AdmittingFactory | None = None) -> Any:
        guest = (port or self.port).buildProtocol(at(host))
        if guest is not None:
            guest.makeConnection(StringTransport())
        return guest

    def test_per_address(self) -> None:
        """One address has so many connections at once and no more; others still get in, and it does when one ends."""
        guests = [self.connect("10.0.0.1") for _ in range(3)]
        self.assertNotIn(None, guests)
        self.assertIsNone(self.connect("10.0.0.1"))
        self.assertIsNotNone(self.connect("10.0.0.2"))
        guests[0].connectionLost(GONE)
        self.assertIsNotNone(self.connect("10.0.0.1"))
        self.assertIsNone(self.connect("10.0.0.1"))

    def test_in_all(self) -> None:
        """All together have so many, whatever their addresses, and whatever port they came to."""
        other = AdmittingFactory(self.house, self.admission, self.clock)
        guests = [self.connect(f"10.0.0.{number}", (self.port, other)[number % 2]) for number in range(5)]
        self.assertNotIn(None, guests)
        for port in (self.port, other):
            self.assertIsNone(self.connect("10.0.0.9", port))
        guests[2].connectionLost(GONE)
        self.assertIsNotNone(self.connect("10.0.0.9"))

    def test_complaint(self) -> None:
        """The log says who was one too many, and why; a thousand of them within a minute are one line."""
        with capturedLogs() as events:
            for _ in range(1003):
                self.connect("10.0.0.1")
            self.clock.advance(61)
            for number in range(3):
                self.connect(f"10.0.1.{number}")
        self.assertEqual(
            [(event["peer"], event["reason"], event.get("unsaid")) for event in events],
            [
                ("10.0.0.1", "3 connections from one address are the most", None),
                ("10.0.1.2", "5 connections are the most", 999),
            ],
        )

    def test_nothing_is_remembered(self) -> None:
        """When all are gone nothing is left of them, however many addresses there were."""
        for number in range(1000):
            self.connect(f"10.0.{number >> 8}.{number & 255}").connectionLost(GONE)
        self.assertEqual((self.admission.connections, len(self.admission._callers)), (0, 0))

    def test_bytes_go_straight(self) -> None:
        """A protocol that was let in is the one that was built, and learns of its end."""
        guest = self.connect("10.0.0.1")
        self.assertIsInstance(guest, Guest)
        guest.dataReceived(b"x")
        guest.connectionLost(GONE)
        self.assertEqual((guest.heard, guest.lost), ([b"x"], [GONE]))

    def test_nobody_home(self) -> None:
        """A connection that is not wanted for other reasons counts for nothing."""
        self.house.full = True
        for _ in range(10):
            self.assertIsNone(self.connect("10.0.0.1"))
        self.assertEqual(self.admission.connections, 0)

    def test_no_transport(self) -> None:
        """A connection that is gone before it has a transport counts for nothing."""
        for _ in range(10):
            self.port.buildProtocol(at("10.0.0.1"))
        self.assertIsNotNone(self.connect("10.0.0.1"))
        self.assertEqual(self.admission.connections, 1)

    def test_half_made(self) -> None:
        """One that cannot be begun is cut off, which the log has once for each, and leaves no count behind."""

        def fail(guest: Guest) -> None:
            raise ZeroDivisionError

        self.patch(Guest, "connectionMade", fail)
        for number in range(1, 6):
            guest = self.connect("10.0.0.1")
            self.assertTrue(guest.transport.disconnected)
            guest.connectionLost(GONE)
            self.assertEqual(guest.lost, [GONE])
            self.assertEqual(self.admission.connections, 0)
            self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1, number)

    def test_port(self) -> None:
        """What is behind the door starts and stops with the port, and gives it its name in the log."""
        self.port.doStart()
        self.assertEqual(self.house.numPorts, 1)
        self.port.doStop()
        self.assertEqual(self.house.numPorts, 0)
        self.assertEqual(self.port.logPrefix(), "House")


class CallerTests(SynchronousTestCase):
    """For whom a connection counts."""

    def test_addresses(self) -> None:
        """An IPv4 address is one caller, however it is written; so are all IPv6 addresses of one network of 64 bits."""
        for host, caller in {
            "10.0.0.1": "10.0.0.1",
            "::ffff:10.0.0.1": "10.0.0.1",
            "2001:db8:0:1::1": "2001:db8:0:1::/64",
            "2001:db8:0:1:ffff::9": "2001:db8:0:1::/64",
            "2001:db8:0:2::1": "2001:db8:0:2::/64",
            "fe80::1%eth0": "fe80::/64",
        }.items():
            self.assertEqual(caller_at(at(host)), caller)

    def test_no_address(self) -> None:
        """All who come through one unix socket are one caller, apart from those who come through another."""
        self.assertEqual(caller_at(UnixPeer("/run/100%/socket")), "unix:/run/100%/socket")
        self.assertEqual(caller_at(UNIXAddress(b"/run/socket")), "")
        self.assertEqual(caller_at(IPv4Address("TCP", "somewhere", 1)), "somewhere")


class NumberTests(SynchronousTestCase):
    """How many there may be."""

    def test_descriptors(self) -> None:
        """Half of the descriptors, and never more than a number that memory is good for."""
        self.assertEqual(most_connections(1024), 512)
        self.assertEqual(most_connections(10**6), admission.MOST_CONNECTIONS)
