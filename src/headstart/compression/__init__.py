"""Smaller and faster models from finished ones: a bundle in, a bundle with its measured loss of quality out."""
