"""The flag that Automatic1111 and Forge learn before they start."""

from __future__ import annotations

import argparse


def preload(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--hyper-merge-dir",
        type=str,
        default=None,
        help="Path to the folder of hyper-models; models/hyper_merge without it",
    )
