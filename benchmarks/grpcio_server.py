"""A server of the grpc library for Python that gives constant answers to what BuildStream 1.6 asks at first.

``python -m benchmarks.grpcio_server PORT [KEY CERTIFICATE]``
"""

from __future__ import annotations

import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

from benchmarks.messages import PROBES

#: A serialized answer of some length, as capabilities are.
_ANSWER = bytes(24)


class _Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Nothing is parsed, and the answer is bytes already."""

    def __init__(self) -> None:
        handler = grpc.unary_unary_rpc_method_handler(lambda request, context: _ANSWER)
        self._handlers = dict.fromkeys(PROBES, handler)

    def service(self, handler_call_details: Any) -> Any:
        return self._handlers.get(handler_call_details.method)


def main(port: str, *files: str) -> None:
    """Serve until SIGTERM."""
    server = grpc.server(ThreadPoolExecutor(), [_Handlers()])
    if files:
        key, certificate = (Path(file).read_bytes() for file in files)
        server.add_secure_port(f"127.0.0.1:{port}", grpc.ssl_server_credentials([(key, certificate)]))
    else:
        server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    signal.sigwait({signal.SIGTERM})
    server.stop(None).wait()


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    main(*sys.argv[1:])
