"""Embed 100,000 terms once, keep them as an index, and search a recording among all of them.

python examples/index_100k_terms.py
python examples/index_100k_terms.py --terms 2000 --recording clip.wav --model outputs/mine
"""

import argparse
import time

from qwen_term_retrieval import TermRetriever
from qwen_term_retrieval.text.wordlists import wordnet_terms

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--terms", type=int, default=100_000, help="so many WordNet lemmas, beside the glossary")
parser.add_argument("--model", default="outputs/demo", help="folder or Hub id")
parser.add_argument("--glossary", default="builders/term_audio/glossary.json")
parser.add_argument("--recording", default="builders/term_audio/demo/test/kokoro-am_michael/0077.ogg")
parser.add_argument("--out", default="outputs/index_100k")
args = parser.parse_args()

retriever = TermRetriever.from_pretrained(args.model)
began = time.perf_counter()
retriever.index(args.glossary)
retriever.add_terms(wordnet_terms()[: args.terms])
seconds = time.perf_counter() - began
print(f"{len(retriever.term_index):,} terms embedded in {seconds:.1f} s")
folder = retriever.save_index(args.out, overwrite=True)  # replaces an index, and nothing else

later = TermRetriever.from_pretrained(args.model)
later.index(folder)
began = time.perf_counter()
(matches,) = later.nearest_batch([args.recording], top_k=5)
print(f"{args.recording}, searched in {time.perf_counter() - began:.2f} s:")
for match in matches:
    print(f"  {match.term:<40} {match.confidence:.3f} {match.start:6.2f} – {match.end:.2f} s")
