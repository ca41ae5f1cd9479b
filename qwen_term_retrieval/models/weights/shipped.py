"""Models that came along with the library, by name: `TermRetriever.from_pretrained("base")`, or without a name.

Each is a folder of `qwen_term_retrieval/shipped` with its own weights in half precision; the base tower that it stands
on is fetched once, see `checkpoints.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SHIPPED = Path(__file__).parents[2] / "shipped"
DEFAULT_NAMES = ("base", "tiny.en")
ABOUT = "about.json"


@dataclass(frozen=True)
class ShippedModel:
    """What is known of a model that came along, from its `about.json`.

    `recall` is a row of its card: `{"speech": …, "bank": 10000, "recall@1": …}`; empty where nothing was measured.
    """

    name: str
    folder: Path
    base_tower: str
    num_bytes: int
    languages: tuple[str, ...]
    licence: str
    recall: Mapping[str, Any]


def shipped_models() -> list[ShippedModel]:
    """All of them, the default first."""
    found = [_read(about.parent) for about in sorted(SHIPPED.glob(f"*/{ABOUT}"))]
    order = {name: place for place, name in enumerate(DEFAULT_NAMES)}
    return sorted(found, key=lambda model: (order.get(model.name, len(order)), model.name))


def model_place(name: str | Path | None) -> str | Path:
    """Where a model is: the folder of one that came along, else the name itself, of a folder or on the Hub.

    Args:
        name: None or "default" for the default one. A folder of that name in the working directory comes first.

    Raises:
        FileNotFoundError: the default is wanted, and none came along.
    """
    if name not in (None, "default"):
        folder = SHIPPED / str(name)
        own = "/" not in str(name) and (folder / ABOUT).is_file() and not Path(str(name)).is_dir()
        return folder if own else Path(str(name)) if isinstance(name, Path) else str(name)
    if Path("default").is_dir() and name is not None:
        return "default"
    models = shipped_models()
    if not models:
        raise FileNotFoundError(
            "no model came along with this installation: name one, a folder or a Hub id, or train one (`make demo`)"
        )
    return models[0].folder


def _read(folder: Path) -> ShippedModel:
    about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    return ShippedModel(
        folder.name,
        folder,
        about["base_tower"],
        sum(path.stat().st_size for path in folder.iterdir()),
        tuple(about["languages"]),
        about["licence"],
        next(iter(about["recall"]), {}),
    )
