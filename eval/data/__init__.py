"""Reading what benchmarks are distributed as."""
