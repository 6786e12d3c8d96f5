"""A server that ComfyUI's real frontend takes for ComfyUI: pages, settings, node definitions, and a record of prompts.

Nothing is computed.  A prompt is written down and answered as finished; what its nodes would send to the browser is what
a test has put into `outputs`.
"""

from __future__ import annotations

import asyncio
import json
import threading
import uuid
from pathlib import Path
from typing import Any

from aiohttp import WSMsgType, web

EXTENSION = "hyper-merge"
"""The folder under custom_nodes that a user would have; its browser files lie under /extensions/<folder>."""

SETTINGS = {  # a person who has been here before: no tour, no dialog of the first visit, no look at other servers
    "Comfy.InstalledVersion": "1.45.21",
    "Comfy.TutorialCompleted": True,
    "Comfy.Workflow.WarnBeforeLeave": False,
    "Comfy.Graph.CanvasInfo": False,
    "Comfy.VueNodes.AutoScaleLayout": False,
    "Comfy.EnableTooltips": False,
    "Comfy.Canvas.NavigationMode": "legacy",
    "Comfy.Canvas.LeftMouseClickBehavior": "panning",
    "Comfy.Canvas.MouseWheelScroll": "zoom",
}


class StandIn:
    """One server on a port of its own, in a thread of its own.

    static: the frontend's folder of files; web: our nodes/web; definitions: the answer of /object_info;
    maps: {file name: map document} for /hyper_merge/map; models: the list of /hyper_merge/models.
    """

    def __init__(self, static: Path, web_folder: Path, definitions: dict[str, Any], maps: dict[str, Any], models: list[Any]):
        self.static, self.web_folder, self.definitions = static, web_folder, definitions
        self.maps, self.models = maps, models
        self.settings: dict[str, Any] = dict(SETTINGS)
        self.prompts: list[dict[str, Any]] = []
        self.outputs: dict[str, Any] = {}
        """{node type: what its `executed` message holds}"""
        self.asked: list[str] = []
        """Queries of /hyper_merge/map, in order."""
        self.unknown: list[str] = []
        self._sockets: dict[str, web.WebSocketResponse] = {}
        self._loop = asyncio.new_event_loop()
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), daemon=True)
        self._thread.start()
        if not started.wait(30):
            raise RuntimeError("the stand-in did not start")

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _run(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._start())
        started.set()
        self._loop.run_forever()

    async def _start(self) -> None:
        application = web.Application(client_max_size=2**26)
        application.router.add_get("/ws", self._socket)
        application.router.add_get("/api/ws", self._socket)
        for prefix in ("", "/api"):
            application.router.add_route("*", prefix + "/{path:.*}", self._answer)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    # ---- websocket -------------------------------------------------------------------------------------------------

    async def _socket(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        name = request.query.get("clientId") or uuid.uuid4().hex
        self._sockets[name] = socket
        await self._send(name, "status", {"status": {"exec_info": {"queue_remaining": 0}}, "sid": name})
        async for message in socket:
            if message.type == WSMsgType.TEXT and json.loads(message.data).get("type") == "feature_flags":
                await self._send(name, "feature_flags", {"supports_preview_metadata": True, "max_upload_size": 2**20})
        self._sockets.pop(name, None)
        return socket

    async def _send(self, name: str, kind: str, data: dict[str, Any]) -> None:
        socket = self._sockets.get(name)
        if socket is not None and not socket.closed:
            await socket.send_json({"type": kind, "data": data})

    # ---- requests --------------------------------------------------------------------------------------------------

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        path = request.path.removeprefix("/api").strip("/")
        if request.method == "GET":
            file = self._file(path)
            if file is not None:
                return web.FileResponse(file)
        head, _, rest = path.partition("/")
        handler = getattr(self, f"_{request.method.lower()}_{head}", None)
        if handler is None:
            self.unknown.append(f"{request.method} {request.path}")
            return web.json_response({"error": "not here"}, status=404)
        return await handler(request, rest)

    def _file(self, path: str) -> Path | None:
        root = self.static
        if path.startswith(f"extensions/{EXTENSION}/"):
            root, path = self.web_folder, path.removeprefix(f"extensions/{EXTENSION}/")
        file = (root / (path or "index.html")).resolve()
        return file if file.is_relative_to(root.resolve()) and file.is_file() else None

    async def _get_object_info(self, request, rest):
        return web.json_response(self.definitions)

    async def _get_extensions(self, request, rest):
        if rest:
            return web.Response(status=404)
        ours = sorted(path.relative_to(self.web_folder).as_posix() for path in self.web_folder.rglob("*.js"))
        core = sorted(path.relative_to(self.static).as_posix() for path in (self.static / "extensions").rglob("*.js"))
        return web.json_response([f"/{name}" for name in core] + [f"/extensions/{EXTENSION}/{name}" for name in ours])

    async def _get_settings(self, request, rest):
        return web.json_response(self.settings.get(rest) if rest else self.settings)

    async def _post_settings(self, request, rest):
        value = await request.json()
        self.settings.update({rest: value} if rest else value)
        return web.Response()

    async def _get_users(self, request, rest):
        return web.json_response({"storage": "server", "migrated": True})

    async def _get_userdata(self, request, rest):
        return web.Response(status=404) if rest else web.json_response([])

    async def _post_userdata(self, request, rest):
        return web.json_response({"path": rest, "size": 0, "modified": 0})

    async def _get_system_stats(self, request, rest):
        system = {
            "os": "posix",
            "comfyui_version": "0.28.0",
            "python_version": "3",
            "pytorch_version": "2",
            "embedded_python": False,
            "argv": ["main.py"],
            "ram_total": 2**34,
            "ram_free": 2**33,
        }
        return web.json_response({"system": system, "devices": []})

    async def _get_hyper_merge(self, request, rest):
        if rest == "models":
            return web.json_response({"models": self.models})
        name = request.query.get("name", "")
        self.asked.append(name)
        if rest == "map" and name in self.maps:
            return web.json_response(self.maps[name])
        return web.json_response({"error": f"{name}: no such hyper-model"}, status=404)

    async def _post_prompt(self, request, rest):
        body = await request.json()
        self.prompts.append(body)
        number = len(self.prompts)
        identity = f"00000000-0000-4000-8000-{number:012d}"
        asyncio.get_running_loop().create_task(self._execute(body, identity))
        return web.json_response({"prompt_id": identity, "number": number, "node_errors": {}})

    async def _execute(self, body: dict[str, Any], identity: str) -> None:
        client = body.get("client_id", "")
        await self._send(client, "status", {"status": {"exec_info": {"queue_remaining": 1}}})
        await asyncio.sleep(0.05)
        await self._send(client, "execution_start", {"prompt_id": identity})
        for node, entry in body["prompt"].items():
            output = self.outputs.get(entry["class_type"])
            if output is not None:
                message = {"node": node, "display_node": node, "output": output, "prompt_id": identity}
                await self._send(client, "executed", message)
        await self._send(client, "execution_success", {"prompt_id": identity})
        await self._send(client, "executing", {"node": None, "prompt_id": identity})
        await self._send(client, "status", {"status": {"exec_info": {"queue_remaining": 0}}})

    async def _get_queue(self, request, rest):
        return web.json_response({"queue_running": [], "queue_pending": []})

    async def _get_jobs(self, request, rest):
        return web.json_response({"jobs": [], "pagination": {"offset": 0, "limit": 100, "total": 0, "has_more": False}})

    async def _nothing(self, request, rest):
        return web.json_response([])

    async def _empty(self, request, rest):
        return web.json_response({})

    _get_embeddings = _get_models = _get_experiment = _nothing
    _get_features = _get_history = _get_i18n = _get_workflow_templates = _get_global_subgraphs = _empty
    _get_prompt = _get_node_replacements = _get_internal = _empty
