"""Asks an ASGI application as a browser would, without a server."""

from __future__ import annotations

import asyncio
import base64
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple
from urllib.parse import urlencode


class Answer(NamedTuple):
    status_code: int
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    def __init__(self, app: Any) -> None:
        self._app = app

    def get(self, path: str, params: dict[str, str] | None = None, auth: tuple[str, str] | None = None) -> Answer:
        return self._ask("GET", path, urlencode(params or {}), b"", auth)

    def post(self, path: str, json: Any, auth: tuple[str, str] | None = None) -> Answer:
        return self._ask("POST", path, "", _dumped(json), auth)

    def _ask(self, method: str, path: str, query: str, body: bytes, auth: tuple[str, str] | None) -> Answer:
        headers = [(b"host", b"here"), (b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        if auth is not None:
            headers.append((b"authorization", b"Basic " + base64.b64encode(":".join(auth).encode())))
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
            "path": path, "raw_path": path.encode(), "query_string": query.encode(), "headers": headers,
            "root_path": "", "client": ("127.0.0.1", 1), "server": ("here", 80),
        }  # fmt: skip
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        # In a thread of its own: after the browser tests a loop is running in this one.
        with ThreadPoolExecutor(1) as pool:
            pool.submit(lambda: asyncio.run(self._app(scope, receive, send))).result()
        status = next(message["status"] for message in sent if message["type"] == "http.response.start")
        return Answer(status, b"".join(message.get("body", b"") for message in sent))


def _dumped(value: Any) -> bytes:
    return json.dumps(value).encode()
