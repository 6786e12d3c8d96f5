"""Questions about checkpoints which need no output file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from . import _core
from .findings import findings
from .grouping import average_linkage, groups
from .model import is_hyper, load
from .sources import Model, Progress, job, selection, source, source_list


def compare(
    models: Sequence[Model],
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    common: bool = False,
    allow_nonfinite: bool = False,
    names: Sequence[str] | None = None,
    memory_budget: int | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    statistics: dict[str, float] | None = None,
) -> dict[str, Any]:
    """How far M models lie from each other; one read of each.

    Returns {"models": [name], "gram", "distance", "cosine": [M × M each, gram and cosine about the mean], "norm": [M],
    "duplicates": [[name]], "distance_to_others": [M, to the affine hull of the others], "rounding": [M, how far rounding to its
    types may have moved a model at most], "notes": [str]}; and what follows from these: "near_duplicates", "mixtures" and
    "dependent" (see `findings`), and "groups": [[name]], the sets of two and more that belong together, if any do.
    Arguments as for `solve`; `statistics` is filled with bytes read and seconds.  Raises Error, MismatchError.
    """
    opened = source_list(models, names)
    text = _core.compare(
        opened, selection(include, exclude, common, allow_nonfinite), job(memory_budget, threads, progress, statistics)
    )
    answer = json.loads(text)
    distance, called = answer["distance"], answer["models"]
    partition = groups(average_linkage(distance), distance)
    grouped = [[called[i] for i in group] for group in partition if len(group) > 1]
    return {**answer, **findings(answer), "groups": grouped}


def recover(
    model: Model,
    parents: Sequence[Model],
    *,
    free: bool = False,
    blocks: bool = False,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    common: bool = False,
    allow_nonfinite: bool = False,
    names: Sequence[str] | None = None,
    memory_budget: int | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    statistics: dict[str, float] | None = None,
) -> dict[str, Any]:
    """The mixture Σ w_m W_m of `parents` that best explains `model`; one read of each.

    free: do not force the weights to sum to 1.  blocks: also per block of the network.  Others as for `solve`.
    Returns {"name", "parents": [name], "weights": [M], "residual", "rms"} and, if asked, "blocks": {block: {"weights",
    "residual"}}.  residual is relative to ‖model − mean of the parents‖, rms is absolute per element.
    Raises Error, MismatchError.
    """
    opened = source(model, "model")
    text = _core.recover(
        opened,
        source_list(parents, names),
        selection(include, exclude, common, allow_nonfinite),
        free,
        blocks,
        job(memory_budget, threads, progress, statistics),
    )
    return json.loads(text)


def inspect(model: Model) -> dict[str, Any]:
    """What a file (or a state dict) is; only its header is read.

    A checkpoint: {"name", "path", "size", "family", "tensors", "parameters", "dtypes", "components", "header_hash",
    "metadata"}.  A hyper-model: the keys of its metadata document, and the above under "file" (without the document).
    Raises Error, FormatError.
    """
    opened = source(model)
    described = json.loads(opened.describe())
    if opened.path is None or not is_hyper(opened):
        return described
    described.get("metadata", {}).pop("hypermerge", None)
    return {**load(opened.path).document, "file": described}
