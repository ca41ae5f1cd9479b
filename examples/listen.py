"""Say which terms are heard, as they are heard: live from the microphone, or from a file that is played as one.

python examples/listen.py                        # the microphone; pip install sounddevice. Ctrl-C ends it
python examples/listen.py --file talk.wav        # in blocks of a tenth of a second, as fast as they can be heard
"""

import argparse
from collections.abc import Iterator

import numpy as np
import soundfile

from qwen_term_retrieval import TermRetriever


def microphone(rate: int) -> Iterator[np.ndarray]:
    import sounddevice

    with sounddevice.InputStream(rate, channels=1, dtype="int16") as stream:
        while True:
            yield stream.read(rate // 10)[0]


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--file", help="a recording in place of the microphone")
parser.add_argument("--model", default="outputs/demo", help="folder or Hub id")
parser.add_argument("--glossary", default="builders/term_audio/glossary.json")
parser.add_argument("--threshold", type=float, help="lowest score; default: the one that the model was calibrated to")
parser.add_argument("--hop", type=float, default=0.5, help="seconds; a smaller one answers sooner and costs more")
args = parser.parse_args()

retriever = TermRetriever.from_pretrained(args.model)
retriever.index(args.glossary)
rate = soundfile.info(args.file).samplerate if args.file else 16_000
blocks = soundfile.blocks(args.file, rate // 10, dtype="int16") if args.file else microphone(rate)
print(f"listening for {len(retriever.term_index)} terms")
for match in retriever.stream(blocks, sampling_rate=rate, threshold=args.threshold, hop_seconds=args.hop):
    print(f"{match.start:7.2f} s  {match.term}  ({match.score:.2f})", flush=True)
