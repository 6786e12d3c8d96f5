"""The demo: eight real diffusion models become one hyper-model with two sliders, and the pictures show what they do.

    make demo        (or: python demo/run.py, where numpy, pillow and hypermerge_ext are installed)

It takes a few seconds, needs neither torch nor a GPU, and leaves everything in demo/out.
"""

import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
OUT = HERE / "out"

try:
    import numpy as np
    import PIL  # noqa: F401  (pictures.py needs it: better to say so before the work than after it)

    import hypermerge_ext as hm
except ImportError as error:
    sys.exit(f"demo: {error}; `make demo` sets everything up and runs this file")

import drawing
import pictures
import sampler
import slides

VALUES = (-1.0, -0.5, 0.0, 0.5, 1.0)
SEED = 7
KEPT = (0.6, -0.8)  # the blend that is kept as an ordinary checkpoint

# What every cell and every row shows: the same scenes from the same noise, so that only the weights differ.
CELL = drawing.scene(("circle", "square", "triangle", "diamond"), (0.02, 0.60, 0.36, 0.80), radius=10.5)
ROW = drawing.scene(
    ("circle", "diamond", "square", "triangle", "circle"),
    (0.58, 0.95, 0.14, 0.72, 0.40),
    x=(0.0, 0.0, -1.5, 0.5, 2.0),
    y=(0.0, 0.0, 1.0, 0.0, -1.5),
    radius=(10.5, 10.5, 9.5, 10.5, 8.5),
)
BRIEF = drawing.scene(("circle", "square", "triangle"), (0.58, 0.02, 0.36), radius=10.5)


class DemoError(Exception):
    """Something is not as it must be; the message is the sentence that the user reads."""


def tool(*arguments):
    """Runs the real command line, shown as one would type it."""
    words = [str(word.relative_to(HERE)) if isinstance(word, Path) else word for word in arguments]
    typed = textwrap.wrap(" ".join(["hyper-merge", *words]), 100, break_long_words=False, break_on_hyphens=False)
    print("\ndemo$ " + " \\\n          ".join(typed), flush=True)
    # Not run in the repository's root: there Python would find the sources of hypermerge_ext before the installed one.
    done = subprocess.run([sys.executable, "-m", "hypermerge_ext", *words], cwd=HERE)
    if done.returncode != 0:
        raise DemoError(f"`hyper-merge {words[0]}` ended with status {done.returncode}; its own message is above")


def model_files():
    files = [HERE / "models" / f"{name}.safetensors" for name in drawing.FAMILY]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise DemoError(f"demo/models lacks {', '.join(missing)}: take them from the repository, or run demo/train.py")
    return files


def blend_samples(hyper, at, scenes, folder):
    """Samples the checkpoint at one place of the plane: written to a file and read back, as a host would."""
    file = Path(folder) / "blend.safetensors"
    file.unlink(missing_ok=True)
    hyper.merge(at, str(file))
    return sampler.Model.load(file).sample(scenes, SEED)


def effects(cells):
    """[2, 2]: what one step of λ and of κ changes in colour temperature and fill, read off the pictures."""
    places = np.array([[*at, 1.0] for at in cells])
    looks = np.array([sampler.look(samples, CELL) for samples in cells.values()])
    slopes = np.linalg.lstsq(places, looks, rcond=None)[0][:2]
    if not abs(slopes[0, 0]) > 4 * abs(slopes[0, 1]) or not abs(slopes[1, 1]) > 4 * abs(slopes[1, 0]):
        raise DemoError(
            "the sliders do not move one look each: per step, λ changes (temperature, fill) by "
            f"({slopes[0, 0]:+.2f}, {slopes[0, 1]:+.2f}) and κ by ({slopes[1, 0]:+.2f}, {slopes[1, 1]:+.2f})"
        )
    return slopes


def draw_map(hyper, folder):
    cells = {(x, y): blend_samples(hyper, (x, y), CELL, folder) for x in VALUES for y in VALUES}
    slopes = effects(cells)
    # The sign of a direction has no meaning of its own, so which end is hot, and which hollow, is read off as well.
    flips = [int(np.sign(slopes[k, k])) for k in (0, 1)]
    ends = {"λ": ("cold", "hot")[:: flips[0]], "κ": ("solid", "hollow")[:: flips[1]]}
    shares = hyper.explained_variance_ratio
    pictures.map_sheet(
        OUT / "grid.png",
        cells,
        VALUES,
        ends,
        "Eight models, two sliders",
        "Same prompts, same noise in every cell; only the weights move.  "
        f"λ explains {shares[0]:.0%}, κ {shares[1]:.0%} of what tells the models apart.",
    )
    return slopes


def draw_models(hyper, files, folder):
    rows = []
    for file, member in zip(files, hyper.members):
        own = sampler.Model.load(file).sample(ROW, SEED)
        at = tuple(member.multipliers)
        blend = blend_samples(hyper, at, ROW, folder)
        lines = [f"λ {at[0]:+.2f}   κ {at[1]:+.2f}", f"residual {member.residual:.0%}"]
        rows.append((file.stem, lines, own, blend))
    pictures.model_sheet(
        OUT / "models.png",
        rows,
        "Each model, and the point of the plane that stands for it",
        "Left: sampled from the model's own file.  Right: from the mean plus λ and κ steps along the two directions.",
    )
    return [sampler.psnr(own, blend) for _, _, own, blend in rows]


def draw_walk(hyper, folder):
    """The animation: both sliders along a path through all eight models."""
    members = [(member.name, np.array(member.multipliers)) for member in hyper.members]
    way = slides.walk([at for _, at in members])
    frames = [blend_samples(hyper, tuple(map(float, at)), CELL, folder) for at in way]
    slides.animation(OUT / "slide.gif", frames, members, way)


def draw_comparison(hyper, files, folder):
    """Each model beside what three ways to merge make of it; returns the mean errors of the three in weights."""
    states = [sampler.read(file) for file in files]
    average = sampler.Model(slides.mixture(states, np.full(len(files), 1 / len(files)))).sample(BRIEF, SEED)
    gram, rows = np.array(hyper.gram), []
    for m, (file, member) in enumerate(zip(files, hyper.members)):
        own = sampler.Model(states[m]).sample(BRIEF, SEED)
        first, second, share, distance = slides.best_pair(gram, m)
        pair = sampler.Model(slides.mixture([states[first], states[second]], [share, 1 - share])).sample(BRIEF, SEED)
        blend = blend_samples(hyper, tuple(member.multipliers), BRIEF, folder)
        recipe = f"{share:.0%} {files[first].stem}, {1 - share:.0%} {files[second].stem}"
        ways = ((blend, member.residual, ""), (average, 1.0, ""), (pair, distance / member.norm, recipe))
        columns = [(made, error, sampler.psnr(own, made), remark) for made, error, remark in ways]
        rows.append((file.stem, own, columns))
    slides.comparison_sheet(
        OUT / "comparison.png",
        rows,
        ("hyper-merge at its λ and κ", "average of all eight", "best sum of two others"),
        "What is left of each model",
        "Off: distance in weights, as a share of the model's distance from the mean.  dB: how far the pictures agree.",
    )
    return np.mean([[error for _, error, _, _ in columns] for _, _, columns in rows], axis=0)


def main():
    start = time.monotonic()
    files = model_files()
    OUT.mkdir(exist_ok=True)
    hyper_file, merged = OUT / "family.hyper.safetensors", OUT / "merged.safetensors"

    print("Eight fine-tunes of one small diffusion model lie in demo/models. Solving for two directions:")
    tool("solve", *files, "-o", hyper_file, "--base", "mean", "--directions", "2")
    tool("merge", hyper_file, "--at", f"{KEPT[0]},{KEPT[1]}", "-o", merged)

    hyper = hm.load(str(hyper_file))
    print("\nSampling ...", flush=True)
    with tempfile.TemporaryDirectory(prefix="hyper-merge-demo-") as folder:
        slopes = draw_map(hyper, folder)
        alike = draw_models(hyper, files, folder)
        errors = draw_comparison(hyper, files, folder)
        draw_walk(hyper, folder)
    base = HERE / "models" / "base.safetensors"
    tool("map", hyper_file, "-o", OUT / "map.png", "--project", base)
    tool("map", hyper_file, "-o", OUT / "map.svg", "--project", base)
    pictures.enlarged(sampler.Model.load(merged).sample(CELL, SEED), 4).save(OUT / "merged.png")

    print("Read off the pictures (temperature: cold -1, hot +1; fill: solid -1, hollow +1):")
    print(f"  one step of λ changes temperature by {slopes[0, 0]:+.2f} and fill by {slopes[0, 1]:+.2f}")
    print(f"  one step of κ changes temperature by {slopes[1, 0]:+.2f} and fill by {slopes[1, 1]:+.2f}")
    print(f"  of what sets a model apart, two sliders miss {errors[0]:.0%}, the best sum of two others {errors[2]:.0%}, the average all of it")
    print(f"  a model's samples and its approximation's agree to {min(alike):.0f} ... {max(alike):.0f} dB")
    print(f"\nMade in {time.monotonic() - start:.0f} s, in demo/out:")
    made = {
        "family.hyper.safetensors": "the hyper-model: the mean of the eight and two directions",
        "merged.safetensors": f"one blend, λ {KEPT[0]:+g} κ {KEPT[1]:+g}, as an ordinary checkpoint",
        "merged.png": "four samples of that checkpoint",
        "grid.png": "what λ and κ do: the map to look at first",
        "models.png": "each of the eight beside its approximation",
        "comparison.png": "… and beside what other ways to merge make of it",
        "slide.gif": "both sliders on a walk through all eight models",
        "map.png": "where the models lie on the plane of the sliders, and what it does not hold",
        "map.svg": "the same for browsers, light and dark",
    }
    for name, what in made.items():
        size = (OUT / name).stat().st_size
        print(f"  {name:26}{size / 1000:6.0f} kB  {what}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (DemoError, sampler.ModelError, hm.Error, OSError) as error:
        sys.exit(f"demo: {error}")
