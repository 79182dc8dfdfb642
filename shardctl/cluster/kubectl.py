"""The way to the cluster: `kubectl proxy`, which knows the kubeconfig, its contexts and every way to authenticate.

It listens on a socket in a folder that only this user can enter, so nobody else on the machine gets the user's rights.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx

from shardctl.cluster.api import Api, ClusterError, UnreachableError

TIMEOUT_SECONDS = 60.0
AT_ONCE = 8  # calls
MAX_LOG_CHARACTERS = 600
# The shell ends kubectl when this process closes the pipe or is gone, even by SIGKILL. It lets go of the output, so that the
# end of a kubectl that fails is seen.
_SCRIPT = '"$@" </dev/null & exec >/dev/null 2>&1; read -r _; kill $!; wait $!'


class NoKubectlError(ClusterError):
    """There is no way to the cluster."""

    def __init__(self) -> None:
        super().__init__(
            "kubectl isn't on the PATH, and it is the way to the cluster. Install it, and check that `kubectl version` "
            "reaches the cluster. `shardctl diff --no-kubernetes` does without."
        )


@contextmanager
def connected(context: str | None = None, namespace: str | None = None) -> Iterator[Api]:
    """The cluster of kubectl's current context, or of the one named. Raises NoKubectlError, UnreachableError."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        raise NoKubectlError
    chosen = [f"--{name}={value}" for name, value in (("context", context), ("namespace", namespace)) if value]
    with TemporaryDirectory(prefix="shardctl-") as folder:
        socket = Path(folder) / "api"
        # Some gateways serve a cluster below a path, which the proxy drops unless it is asked not to.
        command = [kubectl, "proxy", f"--unix-socket={socket}", "--append-server-path", *chosen]
        with _running(command, Path(folder) / "log"), _client(socket) as client:
            yield Api(client)


@contextmanager
def _running(command: list[str], log: Path) -> Iterator[None]:
    """Until the end of the block; it listens when the block begins. Raises UnreachableError with what kubectl says."""
    with log.open("wb") as log_file:
        shell = subprocess.Popen(
            ["/bin/sh", "-c", _SCRIPT, "kubectl", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log_file,
            start_new_session=True,  # Ctrl-C is ours: the last calls still need it
        )
    assert shell.stdin is not None
    assert shell.stdout is not None
    try:
        if not shell.stdout.readline():  # "Starting to serve on …"; nothing when it has ended
            text = " ".join(log.read_text(errors="replace").split())[:MAX_LOG_CHARACTERS]
            raise UnreachableError(f"kubectl can't reach a cluster: {text}. See `kubectl config get-contexts`.")
        yield
    finally:
        shell.stdin.close()
        shell.stdout.close()
        shell.wait()


def _client(socket: Path) -> httpx.Client:
    limits = httpx.Limits(max_connections=AT_ONCE, max_keepalive_connections=AT_ONCE)
    transport = httpx.HTTPTransport(uds=str(socket), limits=limits)
    return httpx.Client(transport=transport, base_url="http://localhost", timeout=TIMEOUT_SECONDS, trust_env=False)
