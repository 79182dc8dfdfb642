"""TLS with an authority of the test's own: files of certificates, and an end of TLS before servers that have none."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from pathlib import Path

import trustme

from shardctl.local.servers.process import HOST

NAMED = "localhost"  # what the servers' certificates are for; the address HOST isn't in them
CLIENT = "careful"  # the name in the clients' certificates
TLS_HANDSHAKE = b"\x16"


class Certificates:
    """Files: `ca` signs the server's and the client's, `other` is an authority that nobody asked."""

    def __init__(self, folder: Path, name: str = NAMED) -> None:
        self.folder = folder
        ours, other = trustme.CA(), trustme.CA()
        self.ca, self.other = self._write("ca.crt", ours.cert_pem), self._write("other.crt", other.cert_pem)
        self.server, self.server_key = self._pair("server", ours.issue_cert(name))
        self.client, self.client_key = self._pair("client", ours.issue_cert(common_name=CLIENT))
        self.stranger, self.stranger_key = self._pair("stranger", other.issue_cert(common_name=CLIENT))

    def _pair(self, name, made):
        return self._write(f"{name}.crt", made.cert_chain_pems[0]), self._write(f"{name}.key", made.private_key_pem)

    def _write(self, name, pem):
        path = self.folder / name
        path.write_bytes(pem.bytes())
        path.chmod(0o600)
        return path


class Front:
    """Ends TLS before a server that doesn't speak it, and passes on what comes without TLS."""

    def __init__(
        self, port: int, certificates: Certificates, listen: int = 0, *, asks: bool = True, speaks: str = ""
    ) -> None:
        """Before the server at `port`. `asks` for a certificate of its clients; `speaks` is the protocol to agree on."""
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certificates.ca)
        self._context.load_cert_chain(certificates.server, certificates.server_key)
        self._context.verify_mode = ssl.CERT_REQUIRED if asks else ssl.CERT_NONE
        if speaks:
            self._context.set_alpn_protocols([speaks])
        self._there, self._listener = port, socket.create_server((HOST, listen))
        self.port = self._listener.getsockname()[1]
        self._connections: list[socket.socket] = []

    def __enter__(self):
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        for connection in (self._listener, *self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=(self._listener.accept()[0],), daemon=True).start()

    def _serve(self, here: socket.socket) -> None:
        self._connections.append(here)
        with contextlib.suppress(OSError):
            if here.recv(1, socket.MSG_PEEK) == TLS_HANDSHAKE:
                here = self._context.wrap_socket(here, server_side=True)
                self._connections.append(here)
            there = socket.create_connection((HOST, self._there))
            self._connections.append(there)
            threading.Thread(target=_pipe, args=(there, here), daemon=True).start()
            _pipe(here, there)


def _pipe(reader: socket.socket, writer: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := reader.recv(65_536):
            writer.sendall(data)
    with contextlib.suppress(OSError):
        writer.shutdown(socket.SHUT_RDWR)
