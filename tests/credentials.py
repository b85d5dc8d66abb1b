"""Whatever a client may show to a port of a server with TLS, and what it may do then: a table for every real client.

Two servers have all the ports that differ in this: one asks for a certificate and has a public port beside, the other
takes clients without one as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from tests.certificates import Certificate, CertificateFiles, certificate, server_certificate
from tests.processes import Server, free_port


class May(Enum):
    """What somebody may do."""

    NOTHING = "gets no connection"
    PULL = "may pull"
    PUSH = "may pull and push"


@dataclass(frozen=True, slots=True)
class Credential:
    """Something to show.

    :ivar name: what it is, for the message of a test that fails.
    :ivar shows: the certificate; `None` for a client that has none.
    :ivar required: what it lets do on the main port of a server that asks for a certificate.
    :ivar optional: the same where a certificate is optional.
    :ivar public: the same on a public port.
    :ivar alert: a pattern for what OpenSSL says of the alert, where the connection is refused for it.
    :ivar issuer: who signed the certificate, if that has to be shown as well.
    :ivar tls: whether the client speaks TLS at all.
    """

    name: str
    shows: Certificate | None
    required: May
    optional: May
    public: May = May.PULL
    alert: str = "unknown ca"
    issuer: Certificate | None = None
    tls: bool = True

    def may(self, port: str) -> May:
        """What it lets do on one of `Ports`."""
        may: May = getattr(self, port)
        return may

    def write(self, place: Path) -> CertificateFiles | None:
        """Write it to new files, the certificate together with its issuer's, as clients take a chain."""
        if self.shows is None:
            return None
        files = self.shows.write(place)
        if self.issuer is not None:
            files.certificate.write_bytes(self.shows.pem + self.issuer.pem)
        return files


SERVER = server_certificate()

# As BuildStream's manual has them: signed by themselves, able to sign others, and all of the same name.
_ALICE, _BOB, _CAROL = certificate("client"), certificate("client"), certificate("client")
_LEAF = certificate("leaf", authority=False)
_AUTHORITY = certificate("authority")
_EXPIRED = certificate("expired", expired=True)

BUNDLE = (_ALICE, _BOB, _LEAF, _AUTHORITY, _EXPIRED)

CREDENTIALS = (
    Credential("the right one", _LEAF, May.PUSH, May.PUSH),
    Credential("one of two with one name, both in the bundle", _ALICE, May.PUSH, May.PUSH),
    Credential("the other of them", _BOB, May.PUSH, May.PUSH),
    Credential("one with their name that is not in the bundle", _CAROL, May.NOTHING, May.NOTHING),
    Credential("a stranger's", certificate("stranger"), May.NOTHING, May.NOTHING),
    Credential("signed by an authority", certificate("x", issuer=_AUTHORITY), May.PUSH, May.PUSH),
    Credential("signed by one as in the manual", certificate("x", issuer=_ALICE), May.PUSH, May.PUSH, issuer=_ALICE),
    Credential(
        "signed by one that may not sign", certificate("x", issuer=_LEAF), May.NOTHING, May.NOTHING, issuer=_LEAF
    ),
    Credential("expired", _EXPIRED, May.NOTHING, May.NOTHING, alert="certificate expired"),
    # The first is what TLS 1.2 has for it.
    Credential("none", None, May.NOTHING, May.PULL, alert="handshake failure|certificate required"),
    Credential("no TLS", None, May.NOTHING, May.NOTHING, May.NOTHING, alert="", tls=False),
)


class Ports:
    """Servers that know the `BUNDLE`, with push enabled, and their ports by what they ask of clients.

    :param place: an empty folder.
    :param cleanup: is given what stops the servers.
    :ivar server: the certificate that they show.
    :ivar numbers: ``required`` and ``public``, of one server; ``optional``, of another.
    """

    def __init__(self, place: Path, cleanup: Callable[[Callable[[], object]], object]) -> None:
        self.server = SERVER.write(place)
        bundle = place / "authorized.crt"
        bundle.write_bytes(b"".join(each.pem for each in BUNDLE))
        public = free_port()
        options = (
            *("--server-key", str(self.server.key), "--server-cert", str(self.server.certificate)),
            *("--client-certs", str(bundle), "--enable-push"),
        )
        asking = Server(place / "asking", *options, "--public-port", str(public))
        content = Server(place / "content", *options, "--client-certs-optional")
        self._servers = asking, content
        for each in self._servers:
            cleanup(each.kill)
            each.begin()
        for each in self._servers:
            each.wait()
        self.numbers: Mapping[str, int] = {"required": asking.port, "optional": content.port, "public": public}

    def said(self) -> str:
        """What stands in the servers' logs."""
        return "".join(each.said() for each in self._servers)
