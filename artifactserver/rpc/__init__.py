"""gRPC on Twisted.

``http2/`` and ``messages.py`` know bytes and nothing of Twisted; ``status.py`` has the one table from errors to gRPC
codes; ``dispatch.py`` knows which method is which; ``exchange.py`` is one call from its first byte to its trailers;
``transport.py`` joins them to a Twisted transport and a clock.
"""
