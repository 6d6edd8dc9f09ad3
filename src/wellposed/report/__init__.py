"""Run folder to HTML page with figures; never computes."""

from wellposed.report.page import render, write_report
from wellposed.report.reading import Run, Trial, read_run

__all__ = ["Run", "Trial", "read_run", "render", "write_report"]
