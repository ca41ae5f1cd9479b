"""The pronunciations of a bank as a prefix tree: what terms have in common at their start is heard once.

Nodes are numbered level by level, the children of one node side by side and in the order of their parents, so that a
level is a slice and the children of a node are a range. It is built level by level, by sorting (parent, sound) of
all pronunciations that go on: a million pronunciations in seconds.

Shapes: N nodes with the root, L levels below the root, R pronunciations.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from qwen_term_retrieval.verification.pronunciations import PronunciationBank

_FILES = {"parents_N": np.int32, "classes_N": np.int16, "levels_L2": np.int64, "nodes_R": np.int32}


@dataclass(frozen=True, eq=False)
class PrefixTree:
    """Nodes of shared prefixes. Node 0 is the root, the prefix without a sound.

    Args:
        parents_N: int32, ascending; the root's is itself.
        classes_N: int16, the sound that a node adds to its parent; the root's is the blank.
        levels_L2: int64, prefixes of l sounds are nodes `levels_L2[l]` to `levels_L2[l + 1]`.
        nodes_R: int32, the node that each pronunciation of the bank ends at.

    Example:
        >>> tree = PrefixTree.of(PronunciationBank.of([[[1, 2]], [[1, 3]], [[1]]], num_classes=4))
        >>> tree.parents_N.tolist(), tree.classes_N.tolist(), tree.nodes_R.tolist()
        ([0, 0, 1, 1], [0, 1, 2, 3], [2, 3, 1])
    """

    parents_N: np.ndarray
    classes_N: np.ndarray
    levels_L2: np.ndarray
    nodes_R: np.ndarray

    @classmethod
    def of(cls, bank: PronunciationBank) -> PrefixTree:
        parents, classes, levels = [np.zeros(1, np.int32)], [np.zeros(1, np.int16)], [0, 1]
        nodes_R = np.zeros(len(bank), np.int32)
        lengths_R = bank.lengths
        rows, level = np.arange(len(bank)), 0
        while len(rows := rows[lengths_R[rows] > level]):
            sounds = bank.classes_S[bank.offsets_R1[rows] + level]
            keys = nodes_R[rows].astype(np.int64) * bank.num_classes + sounds
            # Kept in the order of their nodes, the rows are nearly sorted at the next level.
            order = np.argsort(keys, kind="stable")
            rows, keys = rows[order], keys[order]
            new = np.concatenate([[True], keys[1:] != keys[:-1]])
            nodes_R[rows] = levels[-1] + new.cumsum() - 1
            parents.append((keys[new] // bank.num_classes).astype(np.int32))
            classes.append((keys[new] % bank.num_classes).astype(np.int16))
            levels.append(levels[-1] + len(parents[-1]))
            level += 1
        return cls(np.concatenate(parents), np.concatenate(classes), np.array(levels), nodes_R)

    def __len__(self) -> int:
        return len(self.parents_N)

    @cached_property
    def first_children(self) -> np.ndarray:
        """int64 (N + 1,): the children of node n are `first_children[n] : first_children[n + 1]`."""
        counts_N = np.bincount(self.parents_N[1:], minlength=len(self))
        return np.concatenate([[0], counts_N.cumsum()]) + 1

    @cached_property
    def first_rows(self) -> np.ndarray:
        """int64 (N + 1,): pronunciations that end at node n are `rows_by_node[first_rows[n] : first_rows[n + 1]]`."""
        return np.concatenate([[0], np.bincount(self.nodes_R, minlength=len(self)).cumsum()])

    @cached_property
    def rows_by_node(self) -> np.ndarray:
        """int64 (R,): pronunciations in the order of the nodes that they end at."""
        return np.argsort(self.nodes_R, kind="stable")

    @cached_property
    def sounds_left(self) -> np.ndarray:
        """int16 (N,): the most sounds that any pronunciation of a node's subtree still adds."""
        left_N = np.zeros(len(self), np.int16)
        for level in range(len(self.levels_L2) - 2, 0, -1):
            nodes = slice(self.levels_L2[level], self.levels_L2[level + 1])
            np.maximum.at(left_N, self.parents_N[nodes], left_N[nodes] + 1)
        return left_N

    def save(self, folder: Path) -> None:
        """Write `parents.npy`, `classes.npy`, `levels.npy` and `nodes.npy` into a folder that is there."""
        for name in _FILES:
            np.save(folder / _file_of(name), getattr(self, name))

    @classmethod
    def open(cls, folder: Path) -> PrefixTree:
        """Open what `save` wrote; the arrays stay on disk until they are asked for.

        Raises:
            FileNotFoundError: a file is not there.
            ValueError: what is there is no tree; names the folder.
        """
        arrays = {name: np.load(folder / _file_of(name), mmap_mode="r") for name in _FILES}
        wrong = [name for name, dtype in _FILES.items() if arrays[name].dtype != dtype or arrays[name].ndim != 1]
        num_nodes = len(arrays["parents_N"])
        if wrong or not len(arrays["classes_N"]) == num_nodes == arrays["levels_L2"][-1]:
            raise ValueError(f"{folder}: its arrays are not those of one tree. Make the index again")
        return cls(**arrays)


def _file_of(name: str) -> str:
    return f"tree_{name.partition('_')[0]}.npy"
