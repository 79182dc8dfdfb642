"""Credentials in files, as Kubernetes mounts a Secret: read again when they change, and never shown."""

from __future__ import annotations

import ssl
from base64 import b64encode
from pathlib import Path

from shardctl.errors import UsageError
from shardctl.fleet.settings.httpauth import AUTH_KEYS, CA_KEY, HttpAuth

MAX_BYTES = 1024**2  # of one file: as much as a Secret can hold

_Stamp = tuple[tuple[int, int, int], ...]


class CredentialsError(UsageError):
    """A Secret's file can't be used: says which, and nothing of its content."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(
            f"{path}: {why}. The Secret's keys are mounted there; locally SHARDCTL_SECRETS_DIR names the folder."
        )


class SecretFiles:
    """Some keys of one Secret, which belong together."""

    def __init__(self, folder: Path, keys: tuple[str, ...]) -> None:
        self._folder, self._keys = folder, keys
        self._seen: _Stamp | None = None
        self._values: tuple[bytes, ...] = ()

    def __repr__(self) -> str:
        return f"SecretFiles({self._folder})"

    def read(self) -> tuple[bool, tuple[bytes, ...]]:
        """Whether they are new since the last time, and the values in the order of the keys. Raises CredentialsError."""
        # Kubernetes replaces a Secret's files all at once, by a link to another folder: a name and its password are read from one
        # folder.
        folder = (self._folder / "..data").resolve() if (self._folder / "..data").exists() else self._folder
        stamp = tuple(_stamp(folder / key) for key in self._keys)
        if stamp == self._seen:
            return False, self._values
        values = tuple(_content(folder / key) for key in self._keys)
        fresh = values != self._values
        self._seen, self._values = stamp, values
        return fresh, values


class Authorization:
    """The Authorization header of a backend, for what a Secret holds: `basic` and `bearer`."""

    def __init__(self, auth: HttpAuth, secrets: Path) -> None:
        self._kind, self._folder = auth.kind, secrets / (auth.secret or "")
        self._files = SecretFiles(self._folder, AUTH_KEYS[auth.kind])
        self._header = ""

    def __repr__(self) -> str:
        return f"Authorization({self._kind}, {self._folder})"

    def header(self) -> str:
        """As the files say now. Raises CredentialsError."""
        fresh, values = self._files.read()
        if fresh:
            self._header = ""  # the old header must not outlive files that can't be used
        if not self._header:
            self._header = self._basic(*values) if self._kind == "basic" else self._bearer(*values)
        return self._header

    def _basic(self, user: bytes, password: bytes) -> str:
        if b":" in user:
            raise CredentialsError(self._folder / "username", "a user's name can't hold a colon")
        return f"Basic {b64encode(user + b':' + password).decode()}"

    def _bearer(self, token: bytes) -> str:
        if not all(0x21 <= byte <= 0x7E for byte in token):
            raise CredentialsError(self._folder / "token", "a token is visible ASCII without blanks")
        return f"Bearer {token.decode()}"


class Trust:
    """The authorities that may sign a backend's certificate: the public ones, or only a private one."""

    def __init__(self, ca_secret: str | None, secrets: Path) -> None:
        self._path = secrets / ca_secret / CA_KEY if ca_secret else None
        self._files = SecretFiles(self._path.parent, (CA_KEY,)) if self._path else None
        self._context: ssl.SSLContext | None = None

    def context(self) -> ssl.SSLContext:
        """The same object until the file changes. Raises CredentialsError."""
        fresh, values = self._files.read() if self._files else (False, ())
        if fresh:
            self._context = None
        if self._context is None:
            self._context = self._private(values[0]) if values else ssl.create_default_context()
        return self._context

    def _private(self, authority: bytes) -> ssl.SSLContext:
        try:
            return ssl.create_default_context(cadata=authority.decode("ascii"))
        except (ssl.SSLError, ValueError) as error:
            raise CredentialsError(self._path or Path(CA_KEY), "holds no certificates as PEM text") from error


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise CredentialsError(path, f"can't be read: {error.strerror}") from error
    return status.st_mtime_ns, status.st_ino, status.st_size


def _content(path: Path) -> bytes:
    """The content without the newline that editors and `echo` add."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES).rstrip(b"\r\n")
    except OSError as error:
        raise CredentialsError(path, f"can't be read: {error.strerror}") from error
    if not content:
        raise CredentialsError(path, "is empty")
    return content
