"""What mining finds, by scoring everything."""

import numpy as np

from qwen_term_retrieval.training.negatives.nearest import NO_TERM


def by_hand(query_QD, clip_Q, positive_Q, bank_ND, excluded, k, ratio):
    table = []
    for clip, rows in enumerate(excluded):
        best, too_near = {}, set(rows)
        for query in np.flatnonzero(np.asarray(clip_Q) == clip):
            ceiling = positive_Q[query] * ratio if positive_Q[query] > 0 else np.inf
            for term, score in enumerate((query_QD[query] @ bank_ND.T).tolist()):
                best[term] = max(best.get(term, -2.0), score)
                if score > ceiling:
                    too_near.add(term)
        nearest = sorted(best.keys() - too_near, key=lambda term: -best[term])[:k]
        table.append(nearest + [NO_TERM] * (k - len(nearest)))
    return np.array(table)
