"""GPU kernels in Triton, each in a file of the name of its family; `TRITON_INTERPRET=1` runs them on a CPU."""

import torch
import triton

PTX = torch.version.cuda is not None and not triton.knobs.runtime.interpret
"""Whether kernels may use instructions of NVIDIA's GPUs for which Triton has no name."""
