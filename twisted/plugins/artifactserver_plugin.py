"""What makes ``twistd artifactserver`` a command.

Every ``twistd`` command on the machine imports this file, so it imports nothing but `ServiceMaker` and names the rest.
"""

from twisted.application.service import ServiceMaker

artifactserver = ServiceMaker(
    "artifactserver",
    "artifactserver.tap",
    "A build-artifact server: one port and one store for BuildStream 1 and 2.",
    "artifactserver",
)
