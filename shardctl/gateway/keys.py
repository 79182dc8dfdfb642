"""The clients' keys: what a file of them says, and which of them are valid while it can't be read whole.

Only the SHA-256 of a key is known here. A key is valid while the file confirms it. A file that can't be read, or a line of it,
may confirm a key or revoke it; which is unknown. So a key that it no longer confirms stays valid for a grace period and is then
refused. A file without faults revokes at once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from shardctl.errors import UsageError

MAX_KEYS_BYTES = 4 * 1024**2
REVOKED = "revoked"  # instead of a SHA-256: the client is known and has no key

_NAME, _DIGITS = re.compile(r"[!-~]{1,254}"), re.compile(r"[0-9a-fA-F]{64}")
_FORM = (
    "Write a line for each client, its name and the SHA-256 of its key in hexadecimal digits, or a JSON object of the same. "
    f"`{REVOKED}` instead of the SHA-256 revokes a client's key."
)
_NO_KEY = "holds no client's key"


@dataclass(frozen=True, slots=True)
class KeysFile:
    """What a file says: names by digest, clients without a key, and what of it can't be read. Never repeats a value."""

    names: Mapping[bytes, str]
    revoked: frozenset[str] = frozenset()
    faults: tuple[str, ...] = ()

    @property
    def clients(self) -> frozenset[str]:
        return self.revoked.union(self.names.values())


class KeysError(UsageError):
    """The file of keys can't be read, or only in part."""


class UnconfirmedKeyError(Exception):
    """The key was valid, and the file that could confirm it has been at fault for longer than the grace period."""


class Keyring:
    """Which keys are valid, by the file as it was read last. `clock` is monotonic, in seconds."""

    def __init__(self, file: KeysFile, grace_seconds: float, clock: Callable[[], float]) -> None:
        self._grace_seconds, self._clock = grace_seconds, clock
        self._confirmed = dict(file.names)
        self._unconfirmed: dict[bytes, tuple[str, float]] = {}  # the client, and until when

    def name_of(self, digest: bytes) -> str | None:
        """Whose key it is; None where it is nobody's. Raises UnconfirmedKeyError."""
        name = self._confirmed.get(digest)
        if name is not None or digest not in self._unconfirmed:
            return name
        name, until = self._unconfirmed[digest]
        if self._clock() >= until:
            raise UnconfirmedKeyError
        return name

    def take(self, file: KeysFile) -> None:
        """Use a new version of the file; its faults say what couldn't be read."""
        until, before = self._clock() + self._grace_seconds, self._unconfirmed
        known = before | {digest: (name, until) for digest, name in self._confirmed.items()}
        self._confirmed = dict(file.names)
        self._unconfirmed = {
            digest: (name, until)
            for digest, (name, until) in known.items()
            if file.faults and digest not in file.names and name not in file.revoked
        }

    @property
    def unconfirmed(self) -> frozenset[str]:
        """Clients of keys that are valid for the grace period alone, or were."""
        return frozenset(name for name, _ in self._unconfirmed.values())


def read(path: Path) -> KeysFile:
    """What the file says now. One that can't be read confirms no key."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_KEYS_BYTES + 1)
    except OSError as error:
        return KeysFile({}, faults=(f"can't be read: {error.strerror}",))
    if len(text) > MAX_KEYS_BYTES:
        return KeysFile({}, faults=(f"larger than {MAX_KEYS_BYTES // 1024**2} MiB",))
    return parse(text)


def parse(text: bytes) -> KeysFile:
    """What a file of lines `name sha256`, or a JSON object, says. A line at fault leaves the others as they are."""
    try:
        written = text.decode()
        entries = list(_of_json(written) if written.lstrip().startswith("{") else _of_lines(written))
    except UnicodeDecodeError as error:
        return KeysFile({}, faults=(f"byte {error.start} isn't UTF-8",))
    except (ValueError, RecursionError):
        return KeysFile({}, faults=("not JSON",))
    return _checked(entries)


def whole(file: KeysFile, path: Path) -> KeysFile:
    """The file, which must have no fault. Raises KeysError."""
    if file.faults:
        raise KeysError(f"{path}: {'; '.join(file.faults[:_FAULTS_SHOWN])}. {_FORM}")
    return file


_FAULTS_SHOWN = 5

_Entry = tuple[str, str, object]  # where it stands, the client's name, the digits of its key


def _of_lines(text: str) -> Iterator[_Entry]:
    for number, line in enumerate(text.splitlines(), 1):
        parts = line.split()
        if parts and not parts[0].startswith("#"):
            name, digits = parts if len(parts) == 2 else ("", "")
            yield f"line {number}", name, digits


def _of_json(text: str) -> Iterator[_Entry]:
    pairs = json.loads(text, object_pairs_hook=tuple)  # of a name that is given twice, a dict would drop the first
    for number, (name, digits) in enumerate(pairs, 1):
        yield f"entry {number}", name, digits


def _checked(entries: Iterable[_Entry]) -> KeysFile:
    names: dict[bytes, str] = {}
    revoked, faults, shared = set(), [], set()
    for where, name, digits in entries:
        if not _NAME.fullmatch(name) or not isinstance(digits, str):
            faults.append(f"{where} isn't a name and a SHA-256")
        elif digits == REVOKED:
            revoked.add(name)
        elif not _DIGITS.fullmatch(digits):
            faults.append(f"{where} isn't a name and a SHA-256")
        else:
            digest = bytes.fromhex(digits)
            if names.setdefault(digest, name) != name:
                faults.append(f"{where}: {names[digest]} and {name} have the same key")
                shared.add(digest)
    faults += (f"{name} has a key and is revoked" for name in sorted(revoked.intersection(names.values())))
    good = {digest: name for digest, name in names.items() if digest not in shared and name not in revoked}
    if not names and not revoked and not faults:
        faults.append(_NO_KEY)
    return KeysFile(good, frozenset(revoked), tuple(faults))
