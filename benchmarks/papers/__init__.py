"""The headline table of a paper, one script each, on full data sets."""
