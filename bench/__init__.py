"""The benchmarks: what Interlock costs beside its peers. Run `python -m bench --help`."""
