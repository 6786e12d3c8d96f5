"""What travels along the HYPER links of a graph: an opened hyper-model, and where its numbers are read from."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Sequence
from typing import Any

from .binary import hypermerge, part
from .directions import Directions


class Hyper:
    """A hyper-model in a file.

    The file stays open: what replaces it later is not seen, so a node that reads it anew makes a new Hyper.
    """

    def __init__(self, path: str, name: str, folders: Sequence[str] = ()) -> None:
        """name: what ComfyUI lists it as.  folders: where a linked base may lie.  Raises hypermerge_ext.Error."""
        self.path, self.name = path, name
        self.model: Any = hypermerge().load(path, folders)
        self.identity: str = identity_of(path)
        """Another file, or the same one rewritten, has another."""
        self._stored: Any = None
        self._directions: dict[bool, Directions] = {}
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<Hyper {self.name}>"

    @property
    def document(self) -> dict[str, Any]:
        return self.model.document

    @property
    def count(self) -> int:
        """K."""
        return self.model.directions

    @property
    def replaces(self) -> bool:
        """Base "none": a blend is Σ c·D alone and takes the place of what the model holds."""
        return self.document["base"]["kind"] == "none"

    @property
    def stored(self) -> Any:
        """hypermerge_ext.stored.Stored.  Raises Error when the base that the file names is not found."""
        with self._lock:
            if self._stored is None:
                self._stored = part("stored").Stored(self.model)
            return self._stored

    def directions(self, in_memory: bool) -> Directions:
        """Where patches read: all of them share one copy in memory."""
        stored = self.stored
        with self._lock:
            if in_memory not in self._directions:
                self._directions[in_memory] = Directions(stored, self.identity, in_memory)
            return self._directions[in_memory]


def identity_of(path: str) -> str:
    """32 hexadecimal digits that change when the file does: of its path, size and time."""
    status = os.stat(path)
    text = f"{os.path.realpath(path)}\0{status.st_size}\0{status.st_mtime_ns}"
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]
