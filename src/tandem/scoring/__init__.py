"""Scoring documents with a saved model, each by itself: in Python, in files, and within other tools."""
