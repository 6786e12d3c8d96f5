"""What ComfyUI, its registry and its manager see of this folder, without any of them."""

from __future__ import annotations

import ast
import fnmatch
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from comfyui import pack

ROOT = Path(__file__).resolve().parents[2]
NODES = sorted((ROOT / "nodes").rglob("*.py"))
FROZEN = json.loads(Path(__file__).with_name("frozen.json").read_text(encoding="utf-8"))
WIDGETS = {"BOOLEAN", "COMBO", "FLOAT", "INT", "STRING"}

LOAD = """
import importlib.util, sys
name = "/somewhere/custom_nodes/hyper-merge"
spec = importlib.util.spec_from_file_location(name, sys.argv[1] + "/__init__.py")
module = importlib.util.module_from_spec(spec)
sys.modules[name] = module
spec.loader.exec_module(module)
"""


# A Python that was started as ../.venv/bin/python calls itself so; one that is started by its whole name does not.
PYTHON = os.path.normpath(os.path.abspath(sys.executable))


def run(code, *arguments, **more):
    command = [PYTHON, "-c", code, str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **more)


def test_the_door_opens_under_the_name_that_comfyui_gives(tmp_path):
    """A path as name, from anywhere; nothing heavy is imported before ComfyUI asks for the nodes."""
    code = LOAD + (
        "import inspect, os\n"
        "assert inspect.iscoroutinefunction(module.comfy_entrypoint)\n"
        "assert not hasattr(module, 'NODE_CLASS_MAPPINGS')\n"
        "assert os.path.isdir(os.path.join(sys.argv[1], module.WEB_DIRECTORY))\n"
        "heavy = {'torch', 'numpy', 'comfy_api', 'hypermerge_ext', 'nodes'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = run(code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_without_the_binary_it_says_how_to_get_it(tmp_path):
    code = LOAD + (
        "import importlib\n"
        "sys.modules['hypermerge_ext'] = None\n"
        "binary = importlib.import_module(name + '.nodes.logic.binary')\n"
        "for _ in range(2):\n"
        "    try:\n"
        "        binary.hypermerge()\n"
        "    except binary.MissingBinary as reason:\n"
        "        print(reason)\n"
    )
    done = run(code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"{PYTHON} -m pip install hyper-merge") == 2
    assert done.stdout.count(f"{PYTHON} {ROOT / 'install.py'}") == 2


def test_a_package_that_is_too_old_is_said():
    binary = pack.part("logic.binary")
    with pytest.raises(binary.MissingBinary, match=r"hyper-merge \S+ is older than these nodes") as said:
        binary.part("not_yet_there")
    assert f"{sys.executable} -m pip install --upgrade hyper-merge" in str(said.value)
    assert binary.part("table").Style


def test_older_schemas_lose_only_what_they_do_not_know(tmp_path):
    """A keyword that ComfyUI's dataclass lacks would keep the whole pack from loading."""
    package = tmp_path / "comfy_api" / "latest"
    package.mkdir(parents=True)
    (tmp_path / "comfy_api" / "__init__.py").touch()
    package.joinpath("__init__.py").write_text(
        "import dataclasses, types\n"
        "@dataclasses.dataclass\n"
        "class Schema:\n"
        "    node_id: str\n"
        "    display_name: str = None\n"
        "    category: str = 'sd'\n"
        "    inputs: list = None\n"
        "class Float:\n"
        "    class Input:\n"
        "        def __init__(self, id, display_name=None, default=None, min=None):\n"
        "            self.id, self.default = id, default\n"
        "io = types.SimpleNamespace(Schema=Schema, Float=Float, Custom=lambda name: name)\n"
    )
    code = LOAD + (
        "import importlib\n"
        "fields = importlib.import_module(name + '.nodes.fields')\n"
        "one = fields.field(fields.io.Float, 'lam', default=0.5, advanced=True, round=0.1)\n"
        "made = fields.schema('A', 'a node', inputs=[one], search_aliases=['b'], has_intermediate_output=True)\n"
        "assert (made.node_id, made.category, one.id, one.default) == ('A', 'hyper-merge', 'lam', 0.5)\n"
    )
    done = run(code, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert done.returncode == 0, done.stderr


# ---- what the registry looks at -------------------------------------------------------------------------------------


def test_nothing_else_is_installed_with_it():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").split()
    assert len(lines) == 1 and re.fullmatch(r"hyper-merge(\[[a-z,]+\])?", lines[0])


def test_the_nodes_do_nothing_that_is_forbidden():
    """No code from text, no processes, no fixed devices, no prints; ComfyUI is imported, never changed."""
    names = {"eval", "exec", "compile", "print", "__import__", "setattr"}
    for path in NODES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
                assert not {"subprocess", "ctypes", "pickle", "pip"} & {name.split(".")[0] for name in modules}, path
            if isinstance(node, ast.Call):
                called = node.func
                if isinstance(called, ast.Name) and called.id in names:
                    assert called.id == "setattr" and path.name == "fast_path.py", (path, called.id)
                if isinstance(called, ast.Attribute):
                    assert called.attr not in {"cuda", "startfile", "system", "popen", "autocast"}, path
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    text = ast.unparse(target)
                    assert not text.startswith(("comfy.", "torch.", "sys.modules['comfy")), (path, text)


def test_logic_knows_no_host():
    for path in NODES:
        if path.parent.name == "logic":
            imports = re.findall(r"^\s*(?:from|import) (\S+)", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert not [
                name for name in imports if name.split(".")[0] in {"comfy", "comfy_api", "folder_paths", "server"}
            ]


def test_what_is_published_is_what_nodes_need():
    """Everything that .comfyignore leaves: small, and complete."""
    ignored = [
        line.strip()
        for line in (ROOT / ".comfyignore").read_text(encoding="utf-8").splitlines()
        if line.strip() and not line.startswith("#")
    ]
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if tracked.returncode != 0:
        pytest.skip("not a git checkout: what would be published is unknown")
    left = [
        name
        for name in tracked.stdout.splitlines()
        if not any(name.startswith(rule) if rule.endswith("/") else fnmatch.fnmatch(name, rule) for rule in ignored)
        and (ROOT / name).is_file()
    ]
    folders = {name.split("/")[0] for name in left if "/" in name}
    assert folders == {"nodes", "locales", "example_workflows", "demo"}
    needed = ["__init__.py", "install.py", "requirements.txt", "pyproject.toml", "LICENSE", "demo/drawing.py"]
    needed += ["demo/models/base.safetensors", "nodes/__init__.py", "nodes/logic/binary.py"]
    assert set(needed) <= set(left)
    assert sum((ROOT / name).stat().st_size for name in left) < 6_000_000


def test_the_manifest_says_what_is_needed():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = text.partition("[tool.comfy]")[2]
    assert 'requires-comfyui = ">=0.3.64"' in section and "DisplayName" in section and "PublisherId" in section


# ---- words, pages, examples -----------------------------------------------------------------------------------------


def test_every_node_has_words_and_a_page():
    words = json.loads((ROOT / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8"))
    assert words.keys() == FROZEN.keys()
    for name, node in FROZEN.items():
        assert list(words[name]["inputs"]) == list(node["inputs"]) and words[name]["description"]
        assert len(words[name]["outputs"]) == len(node["outputs"])
        page = (ROOT / "nodes" / "web" / "docs" / f"{name}.md").read_text(encoding="utf-8")
        assert page.startswith(f"# {words[name]['display_name']}\n") and len(page) > 100


WORKFLOWS = sorted((ROOT / "example_workflows").glob("*.json"))


def test_there_are_examples():
    assert len(WORKFLOWS) >= 3


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_examples_fit_the_nodes(path):
    graph = json.loads(path.read_text(encoding="utf-8"))
    nodes = {node["id"]: node for node in graph["nodes"]}
    assert path.with_suffix(".jpg").stat().st_size > 1000
    for number, source, slot, target, place, kind in graph["links"]:
        assert number in nodes[source]["outputs"][slot]["links"] and nodes[target]["inputs"][place]["link"] == number
        assert nodes[source]["outputs"][slot]["type"] == nodes[target]["inputs"][place]["type"] == kind
    ours = [node for node in graph["nodes"] if node["type"].startswith("HyperMerge")]
    assert ours
    for node in ours:
        frozen = FROZEN[node["type"]]
        wanted = [key for key, kind in frozen["inputs"].items() if kind in WIDGETS and key != "blocks"]
        assert len(node["widgets_values"]) == len(wanted), node["type"]
        assert [output["type"] for output in node["outputs"]] == frozen["outputs"]
        assert {given["name"] for given in node["inputs"]} <= set(frozen["inputs"])


# ---- install.py -----------------------------------------------------------------------------------------------------


@pytest.fixture
def installer(monkeypatch):
    """install.py, and the commands that it would run; outcomes[i] says how the i-th ends."""
    spec = importlib.util.spec_from_file_location("hyper_merge_install", ROOT / "install.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.ran, module.outcomes = [], []

    def install(command, *arguments):
        module.ran.append([*command, *arguments])
        return module.outcomes.pop(0)

    module.real_install = module.install
    monkeypatch.setattr(module, "install", install)
    return module


def test_install_leaves_what_is_there(installer, monkeypatch, capsys):
    monkeypatch.setattr(installer, "installed", installer.version)
    assert installer.main() == 0 and installer.ran == [] and capsys.readouterr().out == ""


def test_install_takes_a_wheel_first(installer, monkeypatch, capsys):
    found = iter([None, installer.version()])
    monkeypatch.setattr(installer, "installed", lambda: next(found))
    installer.outcomes = [None]
    assert installer.main() == 0
    assert len(installer.ran) == 1 and installer.ran[0][-3:] == [
        "--only-binary", "hyper-merge", f"hyper-merge=={installer.version()}"
    ]  # fmt: skip
    assert capsys.readouterr().out.endswith("hyper-merge: ready\n")


def test_install_builds_where_there_is_no_wheel(installer, monkeypatch):
    found = iter(["0.0.1", installer.version()])
    monkeypatch.setattr(installer, "installed", lambda: next(found))
    monkeypatch.setattr(installer, "missing", lambda: [])
    installer.outcomes = ["no matching distribution", None]
    assert installer.main() == 0 and installer.ran[1][-1] == str(ROOT)


def test_install_says_what_is_missing(installer, monkeypatch, capsys):
    monkeypatch.setattr(installer, "installed", lambda: None)
    monkeypatch.setattr(installer, "missing", lambda: ["a C compiler (cc)", "pkg-config"])
    installer.outcomes = ["no matching distribution"]
    assert installer.main() == 1 and len(installer.ran) == 1
    said = capsys.readouterr().out
    assert "to build it a C compiler (cc) and pkg-config must be installed first" in said


def test_install_never_touches_anything_else(installer, monkeypatch):
    """--no-deps each time: torch and NumPy stay what they are."""
    commands = []

    def fake(command, **more):
        commands.append(command)
        return subprocess.CompletedProcess(
            command, 1, "", "Collecting\nhyper-merge: the C compiler (cc) was not found\nx"
        )

    monkeypatch.setattr(installer.subprocess, "run", fake)
    said = installer.real_install(["pip", "install"], "hyper-merge")
    assert commands == [["pip", "install", "--upgrade", "--no-deps", "hyper-merge"]]
    assert said == "hyper-merge: the C compiler (cc) was not found"


def test_install_looks_for_what_a_build_needs(installer, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CC", "no-such-compiler")
    lacking = installer.missing()
    assert "pkg-config" in lacking and (os.name != "posix" or "a C compiler (no-such-compiler)" in lacking)


def test_the_installed_package_is_found_from_elsewhere(installer):
    import hypermerge_ext

    assert installer.installed() == hypermerge_ext.__version__ == installer.version()
