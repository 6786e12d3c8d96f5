"""What the page asks for: the map of a hyper-model, and the checkpoints that can be merged."""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from typing import Any

from aiohttp import web

from . import host
from .logic.binary import MissingBinary, hypermerge, part
from .logic.hyper import identity_of

_KEPT = 16  # documents
_documents: OrderedDict[str, dict[str, Any]] = OrderedDict()
_lock = threading.Lock()


def register() -> None:
    """Adds the routes to ComfyUI's server.  Without one (a test that imports nodes) there is nothing to add to."""
    from server import PromptServer

    instance = getattr(PromptServer, "instance", None)
    if instance is None:
        return
    instance.routes.get("/hyper_merge/map")(_map)
    instance.routes.get("/hyper_merge/models")(_models)


async def _map(request: web.Request) -> web.Response:
    """?name=NAME, as HyperMerge Load lists it → pictures.geometry.map_document."""
    name = request.query.get("name", "")
    try:
        return web.json_response(await asyncio.get_running_loop().run_in_executor(None, map_of, name))
    except FileNotFoundError as error:
        return web.json_response({"error": str(error)}, status=404)
    except MissingBinary as error:
        return web.json_response({"error": str(error)}, status=503)
    except Exception as error:  # whatever is wrong with the file: the page shows it
        return web.json_response({"error": str(error)}, status=422)


def map_of(name: str) -> dict[str, Any]:
    """The map's document; read anew when the file has changed.  Raises FileNotFoundError, hypermerge_ext.Error."""
    path = host.hyper_path(name)
    identity = identity_of(path)
    with _lock:
        if identity in _documents:
            _documents.move_to_end(identity)
            return _documents[identity]
    document = part("pictures.geometry").map_document(hypermerge().load(path))
    with _lock:
        _documents[identity] = document
        while len(_documents) > _KEPT:
            _documents.popitem(last=False)
    return document


async def _models(request: web.Request) -> web.Response:
    """Every checkpoint that HyperMerge Solve takes."""
    entries = await asyncio.get_running_loop().run_in_executor(None, host.model_entries)
    return web.json_response({"models": entries})
