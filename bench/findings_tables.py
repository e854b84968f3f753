"""The tables of docs/seed-findings.md, from the records of bench/seed_findings.py."""

from pathlib import Path


def print_tables(output: Path, corpora: list[str]) -> None:
    """All tables, corpus after corpus."""
