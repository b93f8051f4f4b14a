"""What the benchmarks measure beside jaxmethods: other libraries, and code by hand."""
