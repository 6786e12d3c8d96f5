"""hyper-merge: many checkpoints of one architecture become one base and a few directions with sliders.

    import hypermerge_ext as hm
    hyper = hm.solve(["a.safetensors", "b.safetensors", "c.safetensors"])
    print(hyper.explained_variance_ratio, [member.multipliers for member in hyper.members])
    hyper.save("abc.hyper.safetensors")
    hyper.merge([0.4, -0.2], "blend.safetensors")
    live = hyper.bind(model.state_dict())
    live.set(0.4, -0.2)

Models are paths, or state dicts of torch tensors or NumPy arrays, which are used where they lie.  Long calls let go of
the GIL, call `progress(done_bytes, total_bytes)` and stop when it raises.  Errors are `Error` and its kinds.
"""

from __future__ import annotations

try:
    from . import _core
except ImportError as reason:
    raise ImportError(
        f"the compiled part of hyper-merge cannot be loaded ({reason}); build it with `pip install .` in its folder, "
        "which needs: apt-get install gcc pkg-config libcjson-dev python3-dev"
    ) from reason

from ._core import ArgumentError, Cancelled, Error, FormatError, MismatchError, Source
from .blas import offer_packaged
from .live import Live, blend_
from .loras import lora
from .model import HyperModel, Member, load, solve
from .questions import compare, inspect, recover
from .sources import source

__version__: str = _core.version

offer_packaged()

__all__ = [
    "ArgumentError",
    "Cancelled",
    "Error",
    "FormatError",
    "HyperModel",
    "Live",
    "Member",
    "MismatchError",
    "Source",
    "__version__",
    "blend_",
    "compare",
    "inspect",
    "load",
    "lora",
    "recover",
    "solve",
    "source",
]
