"""Side-by-side timings: `python -m benchmarks NAME` writes a table and JSON."""
