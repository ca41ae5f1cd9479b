"""CTC by its definition: every path of a few frames written down, in float64."""

import itertools

import numpy as np


def collapsed(path):
    return [symbol for symbol, _ in itertools.groupby(path) if symbol != 0]


def _path_scores(log_probs_TC, said):
    """Of every path that says it: the path and its log-probability."""
    num_frames, num_classes = log_probs_TC.shape
    for path in itertools.product(range(num_classes), repeat=num_frames):
        if collapsed(path) == list(said):
            yield path, log_probs_TC[np.arange(num_frames), list(path)].sum(dtype=np.float64)


def all_paths(log_probs_TC, said):
    """Scores of all paths that say it over all frames."""
    return [score for _, score in _path_scores(log_probs_TC, said)]


def all_free_paths(log_probs_TC, said):
    """Scores of all paths from a frame with its first sound to one with its last, relative to each frame's best."""
    best_T1 = log_probs_TC.max(axis=1, keepdims=True)
    relative_TC = log_probs_TC - np.where(np.isneginf(best_T1), 0, best_T1)
    num_frames = len(relative_TC)
    return [
        score
        for start, end in itertools.combinations(range(num_frames + 1), 2)
        for path, score in _path_scores(relative_TC[start:end], said)
        if path[0] and path[-1]
    ]


def log_sum(scores):
    return np.logaddexp.reduce(scores) if len(scores) else -np.inf


def best(scores):
    return max(scores, default=-np.inf)
