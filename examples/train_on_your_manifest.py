"""Train on recordings that a manifest lists: JSON Lines with `audio`, `text`, `terms` (all columns: docs/data.md).

python examples/train_on_your_manifest.py                            # the demo's own: a minute or two
python examples/train_on_your_manifest.py mine.jsonl --out outputs/mine --max-steps 2000
"""

import argparse

from datasets import load_dataset

from qwen_term_retrieval import TermRetrievalArguments, TermRetrievalConfig, TermRetrievalModel, TermRetrievalTrainer

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("manifest", nargs="?", default="builders/term_audio/demo/train.termaudio")
parser.add_argument("--audio-tower", default="openai/whisper-tiny.en", help="Hub id or folder")
parser.add_argument("--out", default="outputs/from_a_manifest")
parser.add_argument("--max-steps", type=int, default=40)
parser.add_argument("--batch-size", type=int, default=64)
args = parser.parse_args()

# Packed on first use, into the cache; the same manifest is opened from there ever after.
rows = load_dataset("term_audio", data_files={"train": args.manifest})["train"].train_test_split(0.1, seed=0)
windows = {"sizes": [20, 30, 40, 55, 75, 100, 130], "stride": 5}  # in encoder frames, of which Whisper has 50 a second
model = TermRetrievalModel(TermRetrievalConfig(audio_tower=args.audio_tower, embedding_dim=256, windows=windows))
settings = TermRetrievalArguments(
    output_dir=args.out,
    max_steps=args.max_steps,
    per_device_train_batch_size=args.batch_size,
    learning_rate=2e-3,
    eval_strategy="steps",
    save_strategy="steps",
    eval_steps=max(1, args.max_steps // 4),
    save_steps=max(1, args.max_steps // 4),
)
trainer = TermRetrievalTrainer(model, settings, rows["train"], rows["test"])
trainer.train()
print(f"recall@10 {trainer.evaluate()['eval_recall@10']:.3f} on clips kept back")
trainer.save_model()
