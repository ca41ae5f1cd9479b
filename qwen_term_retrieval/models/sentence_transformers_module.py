"""A retriever as a module of sentence-transformers (6.0 and later), for those who search with that library.

A string is a term, and audio (a path, an array at 16 kHz, or a dict of `array` and `sampling_rate`) is a clip; a clip
has one vector, pooled over all of it. Windows, thresholds and spans stay with `TermRetriever`, and so do languages: a
model of several says every string here as it says a term without one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modality import infer_batch_modality
from sentence_transformers.base.modules import InputModule
from transformers import AutoModel

from qwen_term_retrieval.audio.collate import pad_pcm
from qwen_term_retrieval.audio.decoding import SAMPLING_RATE, clip_pcm
from qwen_term_retrieval.models.embeddings import Spans
from qwen_term_retrieval.storage.staging import check_free


class TermRetrievalModule(InputModule):
    """Terms and clips to unit vectors, through the `TermRetrievalModel` it holds.

    Example:
        >>> model = SentenceTransformer("exported", trust_remote_code=True)                 # doctest: +SKIP
        >>> model.similarity(model.encode(["clip.wav"]), model.encode(["sepsis", "gout"]))  # doctest: +SKIP
    """

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    @property
    def modalities(self) -> list[Any]:
        return ["text", "audio"]

    def get_embedding_dimension(self) -> int:
        return self.model.config.embedding_dim

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """Tokens of terms, or padded samples of clips.

        Raises:
            ValueError: a prompt is given, or terms and clips are mixed.
        """
        if prompt:
            raise ValueError(f"a term is spoken without a prompt: leave out {prompt!r}")
        modality = infer_batch_modality(inputs, supported_modalities=self.modalities)
        if modality == "text":
            return {"modality": "text", **self.model.tokenize(list(inputs))}
        if modality != "audio":
            raise ValueError("encode terms and clips in calls of their own: one batch is either")
        pcm = [clip_pcm(clip, SAMPLING_RATE, name=f"clip {index}") for index, clip in enumerate(inputs)]
        pcm_BS, num_samples_B = pad_pcm(pcm)
        return {"modality": "audio", "pcm_BS": pcm_BS, "num_samples_B": num_samples_B}

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Adds `sentence_embedding`, (B, D) or (N, D)."""
        if features["modality"] == "text":
            inputs = {name: values for name, values in features.items() if name != "modality"}
            vectors = self.model.embed_texts(**inputs)
        else:
            frames_BTH, num_frames_B = self.model.audio_frames(features["pcm_BS"], features["num_samples_B"])
            vectors = self.model.pool_spans(frames_BTH, num_frames_B, *Spans.whole_clips(num_frames_B))
        return {**features, "sentence_embedding": vectors}

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        self.model.save_pretrained(output_path)

    @classmethod
    def load(  # type: ignore[override]  # what it does not name comes in kwargs
        cls, model_name_or_path: str, subfolder: str = "", **kwargs: Any
    ) -> TermRetrievalModule:
        hub = {name: kwargs[name] for name in ("token", "revision", "local_files_only") if kwargs.get(name)}
        # `models/__init__.py`, which runs before this file, has registered the class; the model exports by this file.
        return cls(AutoModel.from_pretrained(model_name_or_path, subfolder=subfolder, **hub))


def write_sentence_transformers(model: Any, path: str | Path) -> None:
    """Save a `TermRetrievalModel` so that `SentenceTransformer(path, trust_remote_code=True)` opens it.

    Raises:
        FileExistsError: there is something in the folder already.
    """
    folder = Path(path)
    check_free(folder, "an empty folder")
    SentenceTransformer(modules=[TermRetrievalModule(model)], device=str(model.device)).save_pretrained(str(folder))
