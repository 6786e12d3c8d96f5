"""Moves of a slider: at once when the host is idle, else the newest waits for the job's end."""

from __future__ import annotations

import threading
import time

from webui.facade.harness import HYPER, same


def wait_until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_idle(webui):
    base = webui.held()
    said = webui.live.want(webui.at(0.4, -0.2))
    assert said.startswith("x · λ 0.4  κ -0.2 · ") and said.endswith(" s")
    assert webui.live.status() == said and webui.live.current() == webui.at(0.4, -0.2)
    assert not same(webui.held(), base)
    assert webui.live.want(webui.at(0.4, -0.2)) == "x · λ 0.4  κ -0.2"
    assert webui.live.want(webui.Settings()) == "off" == webui.live.status()
    assert webui.live.current() is None and same(webui.held(), base)
    webui.live.want(webui.at(0.4, -0.2))
    webui.run(webui.job("a cat", override_settings={"sd_model_checkpoint": "m1.safetensors"}))
    assert webui.live.status() == "off"


def test_while_a_job_runs_the_newest_waits(webui, monkeypatch):
    """The page makes a move for each stop of the slider; only the last is written, and not into a running job."""
    written = []
    binding = webui.ext("binding").Binding
    write = binding._write
    monkeypatch.setattr(binding, "_write", lambda self, change: written.append(self) or write(self, change))
    webui.live.want(webui.at(0.1))
    moved = webui.held()
    written.clear()
    with webui.call_queue.queue_lock:
        said = [webui.live.want(webui.at(lam / 10)) for lam in range(2, 5)]
        time.sleep(0.05)
        assert same(webui.held(), moved) and not written
        assert webui.live.current() == webui.at(0.1)
    assert said == ["waits for the running job"] * 3
    wait_until(lambda: webui.live.current() == webui.at(0.4))
    assert len(written) == 1


def test_an_older_move_learns_that_it_was_dropped(webui):
    answers = {}

    def move(lam):
        answers[lam] = webui.live.want(webui.at(lam), wait=20)

    with webui.call_queue.queue_lock:
        thread = threading.Thread(target=move, args=(0.1,))
        thread.start()
        wait_until(lambda: webui.live._state.pending is not None)
        assert webui.live.want(webui.at(0.2)) == "waits for the running job"
        thread.join(20)
    assert answers[0.1] == "a newer value took its place"
    wait_until(lambda: webui.live.current() == webui.at(0.2))


def test_many_hands(webui):
    """Two browser tabs and a job: every picture is that of its own settings, and the last move is what stays."""
    expected = {lam: webui.image(settings=webui.at(lam)) for lam in (0.0, 0.5)}
    stop = threading.Event()

    def slide(sign):
        lam = 0
        while not stop.is_set():
            lam += 1
            webui.live.want(webui.at(sign * (lam % 9) / 10))

    hands = [threading.Thread(target=slide, args=(sign,)) for sign in (1, -1)]
    for hand in hands:
        hand.start()
    try:
        for lam in (0.5, 0.0, 0.5, 0.0):
            assert webui.image(settings=webui.at(lam)) == expected[lam]
    finally:
        stop.set()
        for hand in hands:
            hand.join(30)
    webui.live.want(webui.at(0.5))
    wait_until(lambda: webui.live.current() == webui.at(0.5))
    assert webui.image(settings=webui.at(0.5)) == expected[0.5]


def test_what_cannot_be_is_said(webui):
    base = webui.held()
    live = webui.live
    assert live.want(webui.at(0.5, hyper="")) == "choose a hyper-model first"
    assert "there is no hyper-model y.hyper.safetensors" in live.want(webui.at(0.5, hyper="y.hyper.safetensors"))
    assert "there is no hyper-model ../x" in live.want(webui.at(0.5, hyper="../x"))
    assert "blocks, line 1" in live.want(webui.at(0.5, blocks="no"))
    assert "number 3 must stay 0" in live.want(webui.at(multipliers=(0.0, 0.0, 1.0)))
    assert live.current() is None and same(webui.held(), base)
    assert "number 3 must stay 0" in live.status()
    assert "multiplier 1 is 1e+09" in live.want(webui.at(1e9))
    assert live.current() is None and same(webui.held(), base)


def test_a_hand_is_answered_also_after_an_error_that_nobody_expected(webui, monkeypatch):
    monkeypatch.setattr(webui.host, "open_hyper", lambda name: 1 / 0)
    assert webui.live.want(webui.at(0.5)) == "division by zero"
    monkeypatch.undo()
    assert webui.live.want(webui.at(0.5)).startswith("x · λ 0.5")


def test_another_hyper_model_begins_at_the_base(webui, tmp_path):
    """Of the same base; the first one's blend must not be taken for it."""
    webui.solve("y.hyper.safetensors", directions=1)
    base = webui.held()
    webui.live.want(webui.at(0.5))
    first = webui.held()
    assert webui.live.want(webui.at(0.5, hyper="y.hyper.safetensors")).startswith("y · λ 0.5 · ")
    assert same(webui.held(), first)  # its first direction is the same
    webui.live.want(webui.at(0.5, 0.5))
    webui.live.want(webui.at(0.25, hyper="y.hyper.safetensors"))
    webui.live.off()
    assert same(webui.held(), base)


def test_the_directions_may_be_kept_in_memory(webui):
    webui.live.want(webui.at(0.5, 0.25))
    from_file = webui.held()
    webui.live.off()
    webui.shared.opts.data["hyper_merge_in_memory"] = webui.shared.opts.data_labels["hyper_merge_in_memory"] = True
    path = webui.hypers / HYPER
    webui.live.want(webui.at(0.1))
    assert webui.live.current() == webui.at(0.1)
    webui.live.want(webui.at(0.5, 0.25))
    assert same(webui.held(), from_file) and path.exists()


def test_where_directions_are_kept_changes_with_the_setting(webui, monkeypatch):
    """Not only when the blend is next switched off and on: a person who unticks it wants her memory back."""
    asked = []
    bind = webui.ext("a1111").bind
    monkeypatch.setattr(webui.ext("a1111"), "bind", lambda *values: asked.append(values[-1]) or bind(*values))
    webui.live.want(webui.at(0.5, 0.25))
    moved = webui.held()
    for in_memory in (True, False):
        webui.shared.opts.data_labels["hyper_merge_in_memory"] = True
        webui.shared.opts.data["hyper_merge_in_memory"] = in_memory
        webui.live.want(webui.at(0.5, 0.25))
        webui.image(settings=webui.at(0.5, 0.25))
        assert same(webui.held(), moved)
    assert asked == [False, True, False]


def test_kept_for_jobs_that_bring_nothing(webui):
    plain = webui.image()
    moved = webui.image(settings=webui.at(0.5))
    webui.live.want(webui.at(0.5), keep=True)
    assert webui.image() == moved and webui.live.kept() == webui.at(0.5)
    assert webui.image(settings=webui.at(0.25)) not in (plain, moved)
    assert webui.image() == moved
    webui.live.off()
    assert webui.image() == plain and webui.live.kept() is None
