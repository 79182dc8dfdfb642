"""Why a request got no answer, in words that hold nothing of it. Pure."""

from __future__ import annotations

import ssl


def cause_text(error: BaseException) -> str:
    """The cause in words that hold nothing of the request: httpx's name for it, and the system's reason if there is one."""
    text = type(error).__name__
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"the certificate is refused: {cause.verify_message}"
        if isinstance(cause, OSError) and cause.strerror:
            text = f"{type(error).__name__}: {cause.strerror}"
        cause = cause.__cause__ or cause.__context__
    return text
