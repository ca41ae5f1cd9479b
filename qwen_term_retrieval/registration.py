"""Registers our features and builder with `datasets`; the only file that touches its private names.

`datasets` 5 has `register_feature`, and no way to add a builder. Its own builders stand in a handful of tables in
`datasets.packaged_modules`; ours is entered into the same tables, and no function is replaced:
- by name: `load_dataset("term_audio", data_dir=… | data_files=…)`;
- by suffix, for plain folders: `.termaudio` manifests, and `.dat`, the shards that the card of a pack names.
One method of the builder class is extended, for the reason given at `ContentKeyedBuilder`.
The tests of this file fail when an upgrade moves a table.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import datasets
import numpy as np
from datasets import packaged_modules
from datasets.features.features import register_feature

BUILDER_NAME = "term_audio"
BUILDER_MODULE = "qwen_term_retrieval.builders.term_audio.builder"
# Part of the cache folder of `load_dataset("term_audio", …)`: to be changed when the same files give other rows.
BUILDER_HASH = "v2"
SUFFIXES = (".termaudio", ".dat")
TABLES = (
    "_PACKAGED_DATASETS_MODULES",
    "_EXTENSION_TO_MODULE",
    "_MODULE_TO_EXTENSIONS",
    "_MODULE_TO_METADATA_FILE_NAMES",
    "_MODULE_TO_METADATA_EXTENSIONS",
    "_ALL_ALLOWED_EXTENSIONS",
)


class ContentKeyedBuilder(datasets.ArrowBasedBuilder):
    """A builder whose cache entry is keyed by its files as they are now.

    For a local folder with `configs:` in its card, datasets 5.2 keys the entry by the folder's name and card alone: an
    edited manifest, or another folder of the same name, would silently give the rows of before.
    """

    def content_key(self, config: datasets.BuilderConfig) -> str:
        """What distinguishes the content of the data files of a resolved config; safe in a file name.

        Empty where the commit in the rest of the key says it: a Hub dataset is found again without a network only if
        its entry has the name that `datasets` gave it.
        """
        raise NotImplementedError

    def _create_builder_config(self, *args: Any, **kwargs: Any) -> tuple[datasets.BuilderConfig, str]:
        config, config_id = super()._create_builder_config(*args, **kwargs)
        key = self.content_key(config)
        return config, f"{config_id}-{key}" if key else config_id


class IncompatibleDatasetsError(ImportError):
    """The installed `datasets` has moved what this library hooks into."""


def row_numbers(dataset: datasets.Dataset) -> np.ndarray | None:
    """Which row of the underlying table each row of a dataset is, (num_rows,); None where they are the same.

    `select` and `shuffle` leave the table as it is and note row numbers beside it, for which datasets 5.2 has no public
    name; asking for the rows instead would copy them one by one.
    """
    return None if dataset._indices is None else dataset._indices.column(0).to_numpy()


def register(features: Iterable[type]) -> None:
    """Make these features and the `term_audio` builder known to `datasets`; doing it twice changes nothing.

    Raises:
        IncompatibleDatasetsError: naming the table that is gone and the version that was found.
    """
    missing = [name for name in TABLES if not hasattr(packaged_modules, name)]
    if missing:
        raise IncompatibleDatasetsError(
            f"datasets {datasets.__version__} has no {', '.join(missing)} in datasets.packaged_modules. Install a "
            "version that this library was tested with (constraints.txt), or adapt qwen_term_retrieval/registration.py."
        )
    for feature in features:
        if datasets.features.features._FEATURE_TYPES.get(feature.__name__) is not feature:
            with warnings.catch_warnings():
                # "experimental", said to everybody who imports us; the tests watch it instead.
                warnings.simplefilter("ignore", UserWarning)
                register_feature(feature, feature.__name__)
    packaged_modules._PACKAGED_DATASETS_MODULES[BUILDER_NAME] = (BUILDER_MODULE, BUILDER_HASH)
    packaged_modules._MODULE_TO_EXTENSIONS[BUILDER_NAME] = list(SUFFIXES)
    packaged_modules._MODULE_TO_METADATA_FILE_NAMES[BUILDER_NAME] = []
    packaged_modules._MODULE_TO_METADATA_EXTENSIONS[BUILDER_NAME] = []
    for suffix in SUFFIXES:
        packaged_modules._EXTENSION_TO_MODULE[suffix] = (BUILDER_NAME, {})
        # `datasets.load` imported this list by name: it must grow in place.
        if suffix not in packaged_modules._ALL_ALLOWED_EXTENSIONS:
            packaged_modules._ALL_ALLOWED_EXTENSIONS.append(suffix)
