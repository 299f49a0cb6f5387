"""What goes wrong with a store, as OSErrors: worth another attempt or not, whichever library it came from."""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager

_PASSING_STATUS = frozenset({408, 425, 429})
"""Of the statuses from 400 to 499 those that say that the same request may succeed later."""


EXTRAS = {"http": "https", "https": "https", "gs": "gs", "gcs": "gs", "s3": "s3", "s3a": "s3"}
"""Scheme -> the extra of this project that installs what reads it."""


class UnreadableError(OSError):
    """Reading that cannot succeed however often it is tried."""


class ChangedObjectError(UnreadableError):
    """A remote object is not the one that was read before."""


PERMANENT = (UnreadableError, FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)


def status_error(status: int, detail: str) -> OSError:
    """Returns the error that an HTTP status stands for."""
    if status in (404, 410):
        return FileNotFoundError(detail)
    if status in (401, 403):
        return PermissionError(detail)
    return UnreadableError(detail) if 300 <= status < 500 and status not in _PASSING_STATUS else OSError(detail)


@contextmanager
def as_os_errors(path: str) -> Iterator[None]:
    """Turns whatever a store's library raises into an OSError.

    The libraries behind fsspec have no common error class, and most of theirs are no OSErrors.
    """
    try:
        yield
    except OSError as error:
        refused = _refused_certificate(error)
        if refused is not None:
            raise UnreadableError(refused) from error
        if str(error).startswith("Forbidden: "):  # How gcsfs says it.
            raise PermissionError(str(error)) from error
        raise
    except ImportError as error:
        extra = EXTRAS.get(path.partition("://")[0])
        advice = f"pip install 'mllm_jax[{extra}]'" if extra else str(error)
        raise UnreadableError(f"what reads {path} is not installed: {advice}") from error
    except Exception as error:
        refused = _refused_certificate(error)
        if refused is not None:
            raise UnreadableError(refused) from error
        status = getattr(error, "status", getattr(error, "code", None))
        detail = f"{type(error).__name__}: {error}"
        raise (status_error(status, detail) if isinstance(status, int) else OSError(detail)) from error


def _refused_certificate(error: BaseException | None) -> str | None:
    """What to say where the cause of an error is a certificate that is not trusted; None: it is not."""
    while error is not None:
        message = getattr(error, "verify_message", "")
        if isinstance(error, ssl.SSLCertVerificationError) and message:
            return (
                f"the server's certificate is refused: {message}. If an authority of your own signed it, name its file "
                "in the environment variable SSL_CERT_FILE (for s3:// in AWS_CA_BUNDLE)"
            )
        error = error.__cause__ or error.__context__
    return None
