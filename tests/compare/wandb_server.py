"""A server that answers what the client of Weights & Biases asks for the runs of a project, and nothing else."""

import json
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import pytest
import wandb
from wandb.proto.wandb_internal_pb2 import Record

from rank_callbacks.compare.wandb_file import _records


class Logged(NamedTuple):
    """A run as the server has it."""

    id: str
    rows: Sequence[Mapping[str, Any]]
    config: Mapping[str, Any] = {}
    name: str = "happy-tree-1"
    state: str = "finished"

    @property
    def last_step(self) -> int:
        return max((row["_step"] for row in self.rows), default=-1)

    def node(self) -> dict[str, Any]:
        """All fields of ``fragment RunFragment on Run``."""
        config = {name: {"value": value} for name, value in self.config.items()} | {"_wandb": {"value": {"t": {}}}}
        nothing = dict.fromkeys(["sweepName", "group", "jobType", "commit"]) | {"tags": [], "description": "", "notes": ""}
        times = {"createdAt": "2026-01-01T00:00:00Z", "heartbeatAt": "2026-01-01T00:01:00Z"}
        keys = {"historyKeys": {"lastStep": self.last_step, "sets": [], "keys": {}}, "historyLineCount": len(self.rows)}
        metrics = {"config": json.dumps(config), "systemMetrics": "{}", "summaryMetrics": "{}"}
        user = {"user": {"name": "someone", "username": "someone"}, "readOnly": False, "projectId": "7", "id": f"id-{self.id}"}
        return {"name": self.id, "displayName": self.name, "state": self.state, **nothing, **times, **keys, **metrics, **user}


def logged_offline(folder: Path, name: str = "abcdefgh") -> Logged:
    """What a ``.wandb`` file holds, by the protocol buffers of Weights & Biases, as its server would have it."""
    (file,) = folder.glob("run-*.wandb")
    rows, config = [], {}
    for record in map(Record.FromString, _records(file)):
        if record.HasField("history"):
            items = record.history.item
            rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
        for update in [*record.run.config.update, *record.config.update]:
            config[update.key or "/".join(update.nested_key)] = json.loads(update.value_json)
    return Logged(name, rows, {name: value for name, value in config.items() if not name.startswith("_wandb")})


class Refusal(NamedTuple):
    """What the server says instead of any answer."""

    status: int
    message: str
    to_whom: str = "viewer"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    runs: Sequence[Logged] | None = None
    refusal: Refusal | None = None

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path != "/graphql":
            return self._send(404, {})
        query = json.loads(body)
        if self.refusal and self.refusal.to_whom in query["query"]:
            return self._send(self.refusal.status, {"errors": [{"message": self.refusal.message}], "data": None})
        return self._send(200, {"data": _answer(query["query"], query.get("variables") or {}, self.runs)})

    def _send(self, status: int, answer: object) -> None:
        text = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


def _answer(query: str, variables: dict[str, Any], runs: Sequence[Logged] | None) -> dict[str, Any]:
    if "viewer" in query:
        return {"viewer": {"id": "1", "entity": "entity", "username": "someone", "flags": "{}", "teams": {"edges": []}}}
    if runs is None or (variables["entity"], variables["project"]) != ("entity", "project"):
        return {"project": None}
    if "query Runs(" in query:
        return {"project": _page(variables, runs)}
    (run,) = [run for run in runs if run.id in {variables.get("name"), variables.get("run"), variables.get("runName")}]
    return {"project": {"run": _run(query, variables, run)}}


def _page(variables: Mapping[str, Any], runs: Sequence[Logged]) -> dict[str, Any]:
    """Two runs a page, however many are asked for."""
    start = int(variables["cursor"] or 0)
    some = [{"node": run.node(), "cursor": str(start + place + 1)} for place, run in enumerate(runs[start : start + 2])]
    info = {"endCursor": str(start + 2), "hasNextPage": start + 2 < len(runs)}
    return {"internalId": "7", "runCount": len(runs), "readOnly": False, "runs": {"edges": some, "pageInfo": info}}


def _run(query: str, variables: Mapping[str, Any], run: Logged) -> dict[str, Any]:
    if "RunParquetHistory" in query:
        return {"parquetHistory": {"parquetUrls": [], "liveData": [{"_step": row["_step"]} for row in run.rows]}}
    if "HistoryPage" in query:
        page = [row for row in run.rows if variables["minStep"] <= row["_step"] < variables["maxStep"]]
        return {"history": [json.dumps(row) for row in page]}
    return run.node()


@contextmanager
def serving(
    runs: Sequence[Logged] | None, cache: Path, refusal: Refusal | None = None, key: str = "0" * 40
) -> Generator[None]:
    """The client of Weights & Biases asks a server of this process, which has these runs in ``entity/project``."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"runs": runs, "refusal": refusal}))
    Thread(target=server.serve_forever, daemon=True).start()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
        environment.setenv("WANDB_SILENT", "true")
        for name in ("HOME", "NETRC", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_CONFIG_DIR"):
            environment.setenv(name, str(cache / "netrc" if name == "NETRC" else cache))
        environment.delenv("WANDB_MODE", raising=False)
        environment.setenv("WANDB_API_KEY", key) if key else environment.delenv("WANDB_API_KEY", raising=False)
        wandb.teardown()  # or it keeps the settings that it had
        try:
            yield
        finally:
            wandb.teardown()
            server.shutdown()
            server.server_close()
