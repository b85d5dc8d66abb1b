"""gRPC on Twisted.

``http2/`` and ``messages.py`` know bytes and nothing of Twisted.  ``status.py`` has the one table from errors to gRPC
codes, ``dispatch.py`` the one from paths to handlers.  A request's headers are read by ``requests.py``, and then it is
an ``exchange.py`` until its trailers, ``unary.py`` or ``streaming.py`` by what its client sends.  ``protocol.py`` joins
all that to one Twisted transport and a clock, ``transport.py`` to a listening port.
"""
