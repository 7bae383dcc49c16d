"""Two processes that take turns at the batches equal one that accumulates two."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file

HERE = Path(__file__).resolve().parent


def test_two_processes_equal_one_with_the_same_window(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{HERE.parent / 'src'}:{HERE}", "OMP_NUM_THREADS": "1"}
    script = str(HERE / "run_distributed.py")
    commands = {
        "one": [sys.executable, script, str(tmp_path / "one"), "2"],
        "two": [
            sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_addr", "127.0.0.1",
            "--master_port", str(20000 + os.getpid() % 20000), script, str(tmp_path / "two"), "1",
        ],
    }  # fmt: skip
    for command in commands.values():
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = load_file(tmp_path / "one"), load_file(tmp_path / "two")
    assert one.keys() == two.keys()
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-6
