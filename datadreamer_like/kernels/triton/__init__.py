"""GPU kernels in Triton, each in a file of the name of its family; `TRITON_INTERPRET=1` runs them on a CPU."""
