"""Print, as JSON, how torch computes here: run inside the service's sandbox and outside of it."""

from __future__ import annotations

import json
import os
import re
import tempfile

import torch

with tempfile.TemporaryFile("w+") as log:
    kept = os.dup(1)
    os.dup2(log.fileno(), 1)  # oneDNN writes there, from C
    with torch.inference_mode(), torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
        torch.manual_seed(0)
        result = torch.nn.Conv2d(3, 16, 3)(torch.rand(1, 3, 224, 224)).sum()
    os.sync()
    os.dup2(kept, 1)
    log.seek(0)
    said = log.read()
print(
    json.dumps(
        {
            "capability": torch.backends.cpu.get_cpu_capability(),
            "isa": "".join(re.findall(r"cpu,isa:(.*)", said)),
            "convolutions": len(re.findall(r"exec,cpu,convolution", said)),
            "sum": float(result).hex(),
        }
    )
)
