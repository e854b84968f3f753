"""The tables of bench/performance.py, one module each."""
