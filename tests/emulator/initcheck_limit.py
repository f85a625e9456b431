"""Show a limit of compute-sanitizer.

`compute-sanitizer --tool initcheck python -m tests.emulator.initcheck_limit` reports reads of `d` as
uninitialised, though TMA wrote every byte of it (and the program checks that it did).
"""

from __future__ import annotations

import torch

from minigemm.compiler import jit
from minigemm.runtime import cuda
from minigemm.types import Config, Launch, TensorMap
from tests.emulator.nvrtc import KERNELS

device = torch.device("cuda", 0)
d = torch.empty(1, 128, dtype=torch.uint8, device=device)
kernel = jit.build(KERNELS / "tma_store.cu", Config(), name="tma_store", symbol="tma_store")
cuda.launch(cuda.load(kernel, 0, device), Launch((1, 1, 1), (128, 1, 1), (TensorMap(d, (1, 128)),)))
assert torch.equal(d.cpu()[0], torch.arange(128, dtype=torch.uint8))
print("every byte was written")
