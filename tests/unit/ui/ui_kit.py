"""The page's server over a fleet on SQLite, called in this process."""

import asyncio
from weakref import finalize

import httpx
from status_kit import WORKING, backlogs

from shardctl.status.collector import Collector, FleetFile, Sources
from shardctl.ui.app import application
from shardctl.ui.view import View

TOKEN = "t0ken-of-this-test"
HOST = "127.0.0.1:8642"
ORIGIN = f"http://{HOST}"


class Client:
    """Calls as the page does, one after the other or several at once."""

    def __init__(self, app, token) -> None:
        self._runner = asyncio.Runner()
        finalize(self, self._runner.close)
        headers = {"Authorization": f"Bearer {token}", "Host": HOST}
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        self._http = httpx.AsyncClient(transport=transport, base_url=ORIGIN, headers=headers)

    def request(self, method, path, **more):
        return self._runner.run(self._http.request(method, path, **more))

    def get(self, path, **more):
        return self.request("GET", path, **more)

    def post(self, path, **more):
        return self.request("POST", path, **more)

    def all(self, *paths):
        async def at_once():
            return await asyncio.gather(*(self._http.get(path) for path in paths))

        return self._runner.run(at_once())


def client(path, urls, *, host="127.0.0.1", token=TOKEN, **sources):
    """`path` is the fleet's file; `sources` replace those of a healthy fleet."""
    healthy = {
        "backlogs": lambda fleet: lambda _: backlogs(fleet),
        "metrics": lambda fleet: {shard.name: WORKING for shard in fleet.shards},
    }
    looker = Collector(Sources(lambda _: urls, local=True, **(healthy | sources)), 5.0)
    return Client(application(View(looker, FleetFile(path)), TOKEN, host), token)
