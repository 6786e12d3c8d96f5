"""The routes, in a real FastAPI where one is installed: the host brings it."""

from __future__ import annotations

import contextlib
import time

import pytest

pytest.importorskip("fastapi", reason="FastAPI is not installed: the routes were not tested")

from fastapi import FastAPI

from webui.facade.asgi import Client
from webui.facade.harness import HYPER

V1 = "/hyper-merge/v1"
MODELS = ["m0.safetensors", "m1.safetensors", "m2.safetensors"]


@pytest.fixture
def client(webui):
    return make_client(webui)


def make_client(webui):
    app = FastAPI()
    webui.ext("api").register(app)
    return Client(app)


def finished(client, job):
    """The job's last answer."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        found = client.get(f"{V1}/progress", params={"job": job}).json()
        if found["state"] not in ("queued", "running"):
            return found
        time.sleep(0.01)
    raise AssertionError(found)


def test_lists_and_questions(client):
    assert client.get(f"{V1}/list").json() == {"hyper_models": [HYPER], "models": [*MODELS, "x base.safetensors"]}
    assert "m2" in client.get(f"{V1}/table", params={"name": HYPER}).json()["text"]
    assert client.get(f"{V1}/map", params={"name": HYPER}).json()["directions"] == 2
    missing = client.get(f"{V1}/map", params={"name": "../m0.safetensors"})
    assert missing.status_code == 404 and "there is no hyper-model" in missing.json()["detail"]


def test_set_and_get(webui, client):
    plain, moved = webui.image(), webui.image(settings=webui.at(0.5, -0.25))
    found = client.post(f"{V1}/set", json={"hyper": HYPER, "multipliers": [0.5, -0.25]}).json()
    assert found["text"].startswith("x · λ 0.5  κ -0.25")
    point = {"hyper": HYPER, "multipliers": [0.5, -0.25], "text_encoder": 1.0, "blocks": ""}
    assert found["current"] == found["set"] == client.get(f"{V1}/get").json()["current"] == point
    assert webui.image() == moved
    client.post(f"{V1}/set", json={"enabled": False})
    assert webui.image() == plain and client.get(f"{V1}/get").json() == {"current": None, "set": None, "status": "off"}
    assert client.post(f"{V1}/set", json={"hyper": "y"}).status_code == 404
    assert client.post(f"{V1}/set", json={"hyper": HYPER, "multipliers": "no"}).status_code == 422
    assert client.post(f"{V1}/set", json={"hyper": HYPER, "multipliers": 1}).status_code == 422
    assert client.post(f"{V1}/set", json={"hyper": HYPER, "multipliers": "12"}).status_code == 422


def test_a_job_from_beginning_to_end(webui, client):
    job = client.post(f"{V1}/solve", json={"models": MODELS, "name": "by api", "directions": 1}).json()
    assert job["kind"] == "solve" and job["state"] in ("queued", "running", "done")
    found = finished(client, job["job"])
    assert found["state"] == "done" and found["progress"] == 1 and found["error"] is None
    name = found["result"]["name"]
    assert name.startswith("by api-") and name in client.get(f"{V1}/list").json()["hyper_models"]
    saved = client.post(f"{V1}/save-checkpoint", json={"hyper": name, "multipliers": [0.5], "file_name": "b"}).json()
    assert finished(client, saved["job"])["result"]["name"] == "b.safetensors"
    loras = client.post(f"{V1}/save-lora", json={"hyper": name, "file_name": "l", "what": "all", "rank": 2}).json()
    assert [file["name"] for file in finished(client, loras["job"])["result"]] == ["l-1.safetensors"]
    loaded = client.post(f"{V1}/load-base", json={"name": name}).json()
    assert finished(client, loaded["job"])["result"]["title"].startswith(name.removesuffix(".hyper.safetensors"))
    projected = client.post(f"{V1}/project", json={"name": name, "models": ["b.safetensors"]}).json()
    assert set(finished(client, projected["job"])["result"]) == {"text", "map"}
    for kind, arguments in (("compare", {"models": MODELS}), ("recover", {"model": MODELS[0], "parents": MODELS[1:]})):
        job = client.post(f"{V1}/{kind}", json=arguments).json()["job"]
        assert MODELS[1].partition(".")[0] in finished(client, job)["result"]["text"]
    assert client.get(f"{V1}/progress").json()["job"] == job


def test_what_goes_wrong_is_said(client):
    job = client.post(f"{V1}/solve", json={"models": MODELS[:1]}).json()["job"]
    found = finished(client, job)
    assert (found["state"], found["error"]) == ("failed", "choose two checkpoints or more; 1 chosen")
    wrong = client.post(f"{V1}/solve", json={"modells": MODELS})
    assert wrong.status_code == 422 and "solve: " in wrong.json()["detail"]
    assert client.get(f"{V1}/progress", params={"job": "nobody"}).status_code == 404
    assert client.post(f"{V1}/cancel", json={"job": "nobody"}).status_code == 404


def test_cancel_while_it_waits(webui, client):
    with webui.call_queue.queue_lock:
        job = client.post(f"{V1}/solve", json={"models": MODELS, "name": "never"}).json()
        assert job["state"] == "queued"
        assert client.post(f"{V1}/cancel", json={"job": job["job"]}).json()["state"] == "cancelled"
    time.sleep(0.05)
    assert finished(client, job["job"])["state"] == "cancelled"
    assert not any(name.startswith("never") for name in client.get(f"{V1}/list").json()["hyper_models"])


def test_cancel_while_it_runs(webui, client, monkeypatch):
    jobs, begun = webui.ext("jobs"), []

    def slow(question, path, progress):
        for step in range(3000):
            begun.append(step)
            progress(step, 3000)
            time.sleep(0.01)

    monkeypatch.setattr(jobs.cache, "solve", slow)
    job = client.post(f"{V1}/solve", json={"models": MODELS}).json()["job"]
    while len(begun) < 3:
        time.sleep(0.005)
    running = client.get(f"{V1}/progress", params={"job": job}).json()
    assert running["state"] == "running" and running["text"].startswith("solving")
    client.post(f"{V1}/cancel", json={"job": job})
    assert finished(client, job)["state"] == "cancelled" and len(begun) < 3000
    assert not webui.shared.state.interrupted


@pytest.mark.parametrize("reason", [None, "stopped", "the disk is gone"])
def test_a_late_cancel_leaves_the_next_job_alone(webui, monkeypatch, reason):
    """It comes when the queue has let the next one in already."""
    tasks, job, interrupted = webui.ext("tasks"), webui.host.job, []

    @contextlib.contextmanager
    def then_cancelled(label):
        try:
            with job(label):
                yield
        finally:
            tasks.cancel(tasks.find(None))
            interrupted.append(webui.shared.state.interrupted)

    def work():
        if reason is not None:
            raise (webui.host.Stopped if reason == "stopped" else OSError)(reason)

    monkeypatch.setattr(webui.host, "job", then_cancelled)
    task = tasks.start("solve", work)
    assert task.ended.wait(20) and interrupted == [False]
    assert task.state == {None: "done", "stopped": "cancelled"}.get(reason, "failed")


def test_the_hosts_authentication(webui):
    webui.shared.cmd_opts.api_auth = "ann:secret,bob:other"
    client = make_client(webui)
    assert client.get(f"{V1}/list").status_code == 401
    assert client.get(f"{V1}/list", auth=("ann", "other")).status_code == 401
    assert client.get(f"{V1}/list", auth=("eve", "secret")).status_code == 401
    assert client.get(f"{V1}/list", auth=("ann", "secret")).status_code == 200
    assert client.get(f"{V1}/list", auth=("bob", "other")).status_code == 200
    assert client.post(f"{V1}/cancel", json={}).status_code == 401
    assert client.post(f"{V1}/solve", json={"models": MODELS}).status_code == 401


def test_numbers_that_are_none_are_refused(client):
    """Python's JSON reads them, and no later answer could be written."""
    for values in ([float("nan")], [0.5, float("inf")]):
        assert client.post(f"{V1}/set", json={"hyper": HYPER, "multipliers": values}).status_code == 422
    assert client.post(f"{V1}/set", json={"hyper": HYPER, "text_encoder": float("nan")}).status_code == 422
    assert client.get(f"{V1}/get").json()["set"] is None


def test_the_api_alone(webui):
    """With --nowebui the host's own API is there without --api."""
    webui.shared.cmd_opts.api, webui.shared.cmd_opts.nowebui = False, True
    assert make_client(webui).get(f"{V1}/list").status_code == 200


def test_without_api_there_are_no_routes(webui):
    webui.shared.cmd_opts.api = False
    assert make_client(webui).get(f"{V1}/list").status_code == 404


def test_without_the_compiled_part(webui, monkeypatch):
    monkeypatch.setattr(webui.ext("api"), "missing", lambda: "build it with …")
    client = make_client(webui)
    assert client.get(f"{V1}/table", params={"name": HYPER}).json() == {"detail": "build it with …"}
    assert client.post(f"{V1}/solve", json={"models": MODELS}).status_code == 503
