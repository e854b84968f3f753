"""The parts of bench/gpu.py: what is measured, and how the results are written down."""
