"""Find terms in every recording of a folder, and write when each was said as subtitles, an .srt a recording.

python examples/search_a_folder.py
python examples/search_a_folder.py talks/ --glossary terms.txt --model outputs/mine --out subtitles/
"""

import argparse
from pathlib import Path

import soundfile

from qwen_term_retrieval import TermRetriever


def timestamp(seconds: float) -> str:
    milliseconds = round(seconds * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{milliseconds // 1000:02},{milliseconds % 1000:03}"


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folder", nargs="?", type=Path, default="builders/term_audio/demo/test/kokoro-am_michael")
parser.add_argument("--model", default="outputs/demo", help="folder or Hub id")
parser.add_argument("--glossary", default="builders/term_audio/glossary.json")
parser.add_argument("--out", type=Path, default="outputs/subtitles")
parser.add_argument("--threshold", type=float, help="lowest score; default: the one that the model was calibrated to")
args = parser.parse_args()

retriever = TermRetriever.from_pretrained(args.model)
retriever.index(args.glossary)
args.out.mkdir(parents=True, exist_ok=True)
for recording in sorted(path for path in args.folder.iterdir() if path.suffix in {".flac", ".mp3", ".ogg", ".wav"}):
    blocks = soundfile.blocks(recording, blocksize=1 << 18, dtype="float32")  # a lecture is never in memory whole
    rate = soundfile.info(recording).samplerate
    subtitles = [
        f"{number}\n{timestamp(match.start)} --> {timestamp(match.end)}\n{match.term}\n"
        for number, match in enumerate(retriever.stream(blocks, sampling_rate=rate, threshold=args.threshold), start=1)
    ]
    (args.out / f"{recording.stem}.srt").write_text("\n".join(subtitles), encoding="utf-8")
    print(f"{recording}: {len(subtitles)} terms")
