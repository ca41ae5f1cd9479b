"""Draw what a search finds: the spectrogram of a recording, the span of the best match, and its score.

python examples/picture_of_a_found_term.py       # as docs/images/found_term.png was drawn; needs matplotlib
"""

import argparse

import torch
from matplotlib.figure import Figure

from qwen_term_retrieval import TermRetriever
from qwen_term_retrieval.audio.decoding import clip_pcm
from qwen_term_retrieval.models.audio_towers.mel import log_mel

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("recording", nargs="?", default="builders/term_audio/demo/test/kokoro-am_michael/0077.ogg")
parser.add_argument("--model", default="outputs/demo", help="folder or Hub id")
parser.add_argument("--glossary", default="builders/term_audio/glossary.json")
parser.add_argument("--out", default="outputs/found_term.png")
args = parser.parse_args()

retriever = TermRetriever.from_pretrained(args.model)
index = retriever.index(args.glossary)
((best, *others),) = retriever.nearest_batch([args.recording], top_k=4)
pcm = torch.from_numpy(clip_pcm(args.recording))[None]
mel, num_frames = log_mel(pcm, torch.tensor([pcm.shape[1]]), num_mel_bins=80, max_frames=3000)
seconds = pcm.shape[1] / 16_000

figure = Figure(figsize=(8, 2.8), dpi=150, layout="constrained")
axes = figure.subplots()
picture = mel[0, :, : int(num_frames)].numpy()
axes.imshow(picture, origin="lower", aspect="auto", cmap="magma", extent=(0, seconds, 0, 80))
axes.vlines([best.start, best.end], 0, 80, color="white", linewidth=2)
middle, found = (best.start + best.end) / 2, f"{best.term}  {best.confidence:.3f}"
axes.text(middle, 76, found, color="white", ha="center", va="top", weight="bold", backgroundcolor="black")
nearest = ", ".join(f"{match.term} {match.confidence:.3f}" for match in others)
axes.set(xlabel="seconds", ylabel="mel bins", yticks=[0, 40, 80])
axes.set_title(f"Best of {len(index)} terms; the next are {nearest}", fontsize=9)
figure.savefig(args.out)
