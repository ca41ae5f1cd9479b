"""Renders many texts to 16 kHz FLAC files, each once: a cache by content, filled by a pool of processes.

A file's name is a hash of all that decides its samples (engine, version, voice, text, speed), so corpora share clips,
and a run that was killed goes on where it stopped: files appear whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import soundfile

from qwen_term_retrieval.progress import Progress
from qwen_term_retrieval.storage.atomic import atomic_file
from qwen_term_retrieval.storage.packages import cache_root
from qwen_term_retrieval.synthesis.engines import ENGINE_NAMES, get_engine
from qwen_term_retrieval.synthesis.speech import SAMPLING_RATE, Speech, as_int16, at_16_khz
from qwen_term_retrieval.workers import process_pool

logger = logging.getLogger(__name__)

_Outcome = tuple["SpeechRequest", float, str]

# Raise it when what `at_16_khz` or an engine makes of the same text changes.
_RENDERING_VERSION = 1
_CHUNK = 12


@dataclass(frozen=True)
class SpeechRequest:
    """What to say: `text` alone, or inside the sentence `before text after`, whose span is then known."""

    engine: str
    voice: str
    text: str
    speed: float = 1.0
    before: str = ""
    after: str = ""

    @property
    def sentence(self) -> str:
        return " ".join(filter(None, (self.before, self.text, self.after)))

    @property
    def speaker(self) -> str:
        return f"{self.engine}-{self.voice}"

    @property
    def path(self) -> Path:
        """Where the rendered clip lies, or will lie, in the cache."""
        parts = [_RENDERING_VERSION, get_engine(self.engine).version, *asdict(self).values()]
        digest = hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()
        return cache_root() / "speech" / digest[:2] / f"{digest[2:34]}.flac"


@dataclass(frozen=True)
class RenderedClip:
    """A rendered request: int16 samples at 16 kHz, the term's seconds within them, the seconds its synthesis took."""

    request: SpeechRequest
    pcm: np.ndarray
    start: float
    end: float
    render_s: float


@dataclass
class RenderReport:
    """What a call of `render` did; `failed` pairs a sentence with the engine's complaint."""

    clips: Counter[str] = field(default_factory=Counter)
    from_cache: Counter[str] = field(default_factory=Counter)
    render_s: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    failed: list[tuple[str, str]] = field(default_factory=list)
    wall_s: float = 0.0

    def summary(self) -> str:
        engines = [
            f"{engine}: {count} clips, {self.from_cache[engine]} of them from the cache, {self.render_s[engine]:.0f} s"
            for engine, count in sorted(self.clips.items())
        ]
        failures = [f"{len(self.failed)} could not be spoken"] if self.failed else []
        return "; ".join([*engines, *failures, f"{self.wall_s:.0f} s in all"])


def render(
    requests: Iterable[SpeechRequest],
    *,
    num_workers: int = 2,
    on_error: Literal["raise", "skip"] = "raise",
    show_progress: bool = True,
) -> RenderReport:
    """Bring every request into the cache, the missing ones by `num_workers` processes (0: in this process).

    Raises:
        ValueError: naming the sentence and voice that an engine could not speak, unless `on_error="skip"`, which
            counts it in the report.
    """
    started = time.monotonic()
    report = RenderReport()
    missing = []
    for request in dict.fromkeys(requests):
        report.clips[request.engine] += 1
        if request.path.is_file():
            report.from_cache[request.engine] += 1
        else:
            missing.append(request)
    # Fast engines first; and by hash, so that what a run leaves that is stopped is a fair sample of its voices.
    missing.sort(key=lambda request: (ENGINE_NAMES.index(request.engine), request.path))
    chunks = [missing[first : first + _CHUNK] for first in range(0, len(missing), _CHUNK)]
    with Progress(total=len(missing), unit="clip", desc="speech", shown=show_progress) as progress:
        for outcomes in _run_chunks(chunks, num_workers):
            progress.update(len(outcomes))
            for request, seconds, complaint in outcomes:
                report.render_s[request.engine] += seconds
                if complaint and on_error == "raise":
                    raise ValueError(f"{request.speaker} could not speak {request.sentence!r}: {complaint}")
                if complaint:
                    report.clips[request.engine] -= 1
                    report.failed.append((request.sentence, complaint))
    report.wall_s = time.monotonic() - started
    logger.info("speech rendered: %s", report.summary())
    return report


def read_rendered(request: SpeechRequest) -> RenderedClip:
    """The clip of a request that `render` has brought into the cache.

    Raises:
        FileNotFoundError: if it is not there.
    """
    if not request.path.is_file():
        raise FileNotFoundError(f"{request.sentence!r} by {request.speaker} is not in the cache; call render first")
    with soundfile.SoundFile(request.path) as file:
        start, end, render_s = (float(value) for value in file.comment.split())
        return RenderedClip(request, file.read(dtype="int16"), start, end, render_s)


def _run_chunks(chunks: Sequence[list[SpeechRequest]], num_workers: int) -> Iterable[list[_Outcome]]:
    if num_workers == 0 or len(chunks) == 1:
        yield from map(_render_chunk, chunks)
        return
    # Spawned, because the engines' libraries and onnxruntime's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with process_pool(num_workers, context) as pool:
        futures = [pool.submit(_render_chunk, chunk) for chunk in chunks]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _render_chunk(requests: list[SpeechRequest]) -> list[_Outcome]:
    outcomes = []
    for request in requests:
        started = time.perf_counter()
        complaint = ""
        try:
            speech = at_16_khz(_speak(request))
        except ValueError as error:
            complaint = str(error)
        seconds = time.perf_counter() - started
        if not complaint:
            _write(request.path, speech, seconds)
        outcomes.append((request, seconds, complaint))
    return outcomes


def _speak(request: SpeechRequest) -> Speech:
    engine = get_engine(request.engine)
    if request.before or request.after:
        return engine.say_in_sentence(request.before, request.text, request.after, request.voice, request.speed)
    return Speech(*engine.say(request.text, request.voice, request.speed))


def _write(path: Path, speech: Speech, seconds: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    start = 0.0 if speech.start is None else speech.start
    end = speech.duration if speech.end is None else speech.end
    with (
        atomic_file(path, durable=False) as file,
        soundfile.SoundFile(file, "w", SAMPLING_RATE, 1, format="FLAC", subtype="PCM_16") as sound,
    ):
        sound.comment = f"{start:.4f} {end:.4f} {seconds:.3f}"
        sound.write(as_int16(speech.pcm))
