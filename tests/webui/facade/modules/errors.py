"""The host catches what scripts and extra networks raise, prints it and goes on; here it is kept for the test."""

from __future__ import annotations

reported: list[BaseException] = []


def report(error: BaseException) -> None:
    reported.append(error)
