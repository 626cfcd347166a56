"""Evaluated models side by side: one HTML page that needs nothing else, and Markdown with pictures."""

from moe_codegen.evaluation.report.page import write_report as write_report
