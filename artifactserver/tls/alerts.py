"""What a client is told whose certificate was refused: an alert that fits, such as ``certificate_expired``.

OpenSSL has an alert for each of its reasons to refuse a certificate, and ``internal_error`` where there is none.
pyOpenSSL takes a reason away whenever it asks us about it, and has no name for giving one.  Neither does it say whose
chain has a fault, so that a client could not be refused before all of the chain has been checked.  So this reaches
below it; a version in which that is not possible refuses just as well, later and with the alert that says less.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from OpenSSL import SSL, crypto


def give_reasons(context: SSL.Context, reason: Callable[[], int], about: Callable[[crypto.X509], None]) -> bool:
    """Let OpenSSL know why certificates are refused; to be called once the context has its callback.

    :param reason: the error, by OpenSSL's number, of the refusal that the callback has just given.
    :param about: told the client's own certificate, before the callback is asked about a fault of its chain.
    :return: whether that is possible.
    """
    below: Any = SSL
    inside: Any = context
    try:
        ask = inside._verify_helper.callback
        set_error = below._lib.X509_STORE_CTX_set_error
        own_of = below._lib.X509_STORE_CTX_get0_cert
        hold = below._lib.X509_up_ref
        wrapped = below.X509._from_raw_x509_ptr

        @below._ffi.callback("int (*)(int, X509_STORE_CTX *)")  # type: ignore[untyped-decorator]
        def verify(ok: int, store: Any) -> int:
            if not ok:
                own = own_of(store)
                hold(own)
                about(wrapped(own))
            accepted: int = ask(ok, store)
            if not accepted:
                set_error(store, reason())
            return accepted

        below._lib.SSL_CTX_set_verify(inside._context, context.get_verify_mode(), verify)
    except (AttributeError, TypeError):
        return False
    # Where pyOpenSSL keeps its own, so that it lives as long as the context.
    inside._verify_callback = verify
    return True
