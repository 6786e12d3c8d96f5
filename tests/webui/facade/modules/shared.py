"""Options, flags, and the state of the running job."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

cmd_opts = SimpleNamespace(
    ckpt_dir=None, lora_dir=None, hyper_merge_dir=None, api=True, api_auth=None, no_half=False,
    opt_channelslast=False, medvram=False,
)  # fmt: skip
config_filename = "config.json"


class Options:
    """Settings; one that nobody declared is not there."""

    def __init__(self) -> None:
        self.data: dict[str, Any] = {
            "sd_model_checkpoint": None, "sd_checkpoints_limit": 1, "sd_checkpoints_keep_in_cpu": True,
            "fp8_storage": False, "cache_fp16_weight": False, "persistent_cond_cache": True, "pad_cond_uncond": False,
        }  # fmt: skip
        self.data_labels: dict[str, Any] = dict(self.data)
        self.saved = 0

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["data"][name]
        except KeyError:
            raise AttributeError(name) from None

    def save(self, path: str) -> None:
        self.saved += 1


opts = Options()


class State:
    def __init__(self) -> None:
        self.interrupted = self.skipped = self.stopping_generation = False
        self.job, self.job_count, self.job_no, self.textinfo = "", 0, 0, None
        self.sampling_step = self.sampling_steps = 0
        self.time_start = 0.0

    def begin(self, job: str = "") -> None:
        self.interrupted = self.skipped = self.stopping_generation = False
        self.job, self.job_count, self.job_no, self.textinfo = job, -1, 0, None
        self.sampling_step = 0
        self.time_start = time.time()

    def end(self) -> None:
        self.job, self.job_count = "", 0

    def interrupt(self) -> None:
        self.interrupted = True


state = State()


def __getattr__(name: str) -> Any:
    if name == "sd_model":
        from . import sd_models

        return sd_models.model_data.get_sd_model()
    raise AttributeError(name)
