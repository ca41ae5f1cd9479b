"""How a run begins: who says what on screen, and in which folder it lies, never over another run unasked."""

from __future__ import annotations

import logging
import shutil
from functools import partial
from pathlib import Path

import datasets
from transformers import ProgressCallback, Trainer
from transformers.utils import logging as hf_logging

from qwen_term_retrieval.distributed import deferred, gathered, on_every_rank
from qwen_term_retrieval.runs.arguments import RunArguments
from qwen_term_retrieval.runs.checkpoints.resuming import last_whole_checkpoint
from qwen_term_retrieval.trainer_callbacks import ProgressLineCallback

logger = logging.getLogger(__name__)


def configure_logging(args: RunArguments) -> None:
    """Rank 0 tells what happens; the other ranks only warn."""
    level = args.get_process_log_level() if args.process_index else logging.INFO
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("qwen_term_retrieval").setLevel(level)
    hf_logging.set_verbosity_warning()
    hf_logging.disable_progress_bar()  # one bar for every file saved; the training bar stays
    if args.process_index:
        datasets.disable_progress_bars()


def show_loss_behind_the_bar(trainer: Trainer) -> None:
    """Unless `disable_tqdm` asks for lines in place of the bar."""
    if not trainer.args.disable_tqdm:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(ProgressLineCallback())


def heading(name: str, what: str) -> None:
    logger.info("== %s: %s", name, what)


def prepare_output_dir(args: RunArguments) -> str | None:
    """The checkpoint to go on from, if any. An earlier run is never written over unasked."""
    folder = Path(str(args.output_dir))
    if not folder.is_dir() or not any(folder.iterdir()):
        return None
    if args.resume:
        return last_whole_checkpoint(folder)
    if not args.overwrite:
        raise FileExistsError(
            f"{folder} holds an earlier run: --resume goes on with it, --overwrite deletes it, --output_dir leaves it"
        )
    if args.local_process_index == 0:
        shutil.rmtree(folder)
    return None


def claim_output_dir(args: RunArguments) -> str | None:
    """As `prepare_output_dir`, on all ranks together: one of them deletes, all of them find, or fail."""
    with args.main_process_first(local=False, desc="preparing the output folder"):
        prepared = deferred(partial(prepare_output_dir, args))
    checkpoint = on_every_rank(prepared)
    check_one_output_dir(args, checkpoint)
    return checkpoint


def check_one_output_dir(args: RunArguments, checkpoint: str | None) -> None:
    """Refuse an `output_dir` that is another folder on another machine: ranks would begin at different steps.

    Raises:
        FileNotFoundError: the ranks found different checkpoints.
    """
    found = gathered(checkpoint and Path(checkpoint).name)
    if len({*found}) > 1:
        lacking = next(rank for rank, name in enumerate(found) if name != found[0])
        raise FileNotFoundError(
            f"{args.output_dir}: rank 0 goes on from {found[0]}, rank {lacking} from {found[lacking]}. All machines "
            "must see one output_dir: put it on a disk that they share"
        )
