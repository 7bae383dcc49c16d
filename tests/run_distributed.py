"""One of several processes of a tiny run, started by torchrun; the first writes its final weights."""

from __future__ import annotations

import os
import sys

import torch
from safetensors.torch import save_file

from tiny import make_loop, make_rows

loop = make_loop(rows=make_rows(60), dropout=0.0, accumulate=int(sys.argv[2]), epochs=2)
result = loop.train()
assert loop.accelerator.num_processes == int(os.environ.get("WORLD_SIZE", "1"))
if loop.accelerator.is_main_process:
    save_file({name: value.contiguous() for name, value in result.model.state_dict().items()}, sys.argv[1])
if torch.distributed.is_initialized():
    torch.distributed.barrier()
    # On busy cores torch was seen to abort one process in twenty while it ends, after all is written.
    os._exit(0)
