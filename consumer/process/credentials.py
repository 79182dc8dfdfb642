"""User and password of a URL in a file, read again for each new connection: a rotated password needs no restart."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from shardctl.errors import UsageError
from shardctl.supervision.trouble import Trouble

log = logging.getLogger(__name__)

Login = tuple[str | None, str | None]  # user and password
Parsed = tuple[Login, object]  # and what else the URL says, to be compared


class Credentials:
    """What a file of a mounted Secret says now. Kubernetes replaces it as a whole, some time after the Secret has changed.

    Only the login is read again. A URL that leads to another server or database waits for the next start, since the process
    knows what the first one holds; until then, and while the file can't be read, the last login stays.
    """

    def __init__(self, variable: str, path: Path, parse: Callable[[str], Parsed]) -> None:
        """Raises UsageError, which never shows the URL."""
        self._name, self._path, self._parse = variable, path, parse
        self.url = _text(path)  # as it was at the start
        self._login, self._place = parse(self.url)
        self._trouble = Trouble(variable, log, "credentials_unusable")

    def __call__(self) -> Login:
        try:
            login = self._read()
        except UsageError as error:
            self._trouble.met(error, "new connections log in as the last ones did")
            return self._login
        self._trouble.over()
        if login != self._login:
            log.info(
                "%s: new connections log in as %s says now",
                self._name,
                self._path,
                extra={"action": "credentials_rotated"},
            )
        self._login = login
        return login

    def _read(self) -> Login:
        login, place = self._parse(_text(self._path))
        if place != self._place:
            raise UsageError(f"{self._path} leads to another server or database, which only a restart makes use of")
        return login


def _text(path: Path) -> str:
    """What a file holds. Raises UsageError, which names the file and shows nothing of it."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise UsageError(f"{path}: can't be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise UsageError(f"{path}: holds no text") from None
