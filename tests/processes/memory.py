"""Two ranks of which only the second lacks memory: each must refuse the run, and neither wait for the other.

torchrun --nproc_per_node 2 tests/processes/memory.py OUTPUT_DIR
"""

import sys
from pathlib import Path

from qwen_term_retrieval.distributed import end_ranks, rank
from qwen_term_retrieval.runs import memory as memory_check
from tests.processes.trainer import make_trainer

if __name__ == "__main__":
    trainer = make_trainer(sys.argv[1], 8)
    memory_check.free_memory = lambda device: 1e6 if rank() else 1e12
    try:
        trainer.train()
    except memory_check.NotEnoughMemoryError as error:
        Path(sys.argv[1], f"refused-{rank()}").write_text(str(error))
    end_ranks()
