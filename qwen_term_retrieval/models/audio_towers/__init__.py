"""Audio towers, one family of encoders a file; importing this package registers them all.

tower.py                                the base of all, and their registry
mel.py, normalized_mel.py               samples to spectrograms, on the device
whisper.py, qwen2_audio.py              Whisper's encoder, and Qwen2-Audio's, which averages pairs of its frames
qwen3.py, qwen3_asr.py, qwen3_omni.py   Qwen3's encoders, and what they share
parakeet.py, wav2vec2_bert.py           conformers
fast_conformer.py                       a run of Parakeet's encoder, and batch normalisation by frames
"""

from qwen_term_retrieval.models.audio_towers.parakeet import ParakeetTower
from qwen_term_retrieval.models.audio_towers.qwen2_audio import Qwen2AudioTower
from qwen_term_retrieval.models.audio_towers.qwen3_asr import Qwen3ASRTower
from qwen_term_retrieval.models.audio_towers.qwen3_omni import Qwen3OmniTower
from qwen_term_retrieval.models.audio_towers.tower import AUDIO_TOWERS, AudioTower, register_audio_tower
from qwen_term_retrieval.models.audio_towers.wav2vec2_bert import Wav2Vec2BertTower
from qwen_term_retrieval.models.audio_towers.whisper import WhisperTower

__all__ = [
    "AUDIO_TOWERS",
    "AudioTower",
    "ParakeetTower",
    "Qwen2AudioTower",
    "Qwen3ASRTower",
    "Qwen3OmniTower",
    "Wav2Vec2BertTower",
    "WhisperTower",
    "register_audio_tower",
]
