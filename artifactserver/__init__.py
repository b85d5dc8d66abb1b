"""A build-artifact server on Twisted: one port, one store, every BuildStream and REAPI client."""

__version__ = "0.1.0"
