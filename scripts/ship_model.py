r"""Make a trained model one that comes along with the library: half precision, a card, what was measured.

python scripts/ship_model.py outputs/base base --facts configs/shipped/base.json \
    --results benchmarks/results/second_look_ktuberling.json benchmarks/results/second_look_asterisk.json
python scripts/ship_model.py --help
"""

import argparse
import json
import logging
from pathlib import Path

from qwen_term_retrieval.evaluation.shipping import recall_rows_of, ship_model
from qwen_term_retrieval.models.weights.shipped import SHIPPED
from qwen_term_retrieval.refusals import one_line_errors

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of the trained model")
    parser.add_argument("name", help="what it will be called: base, tiny.en")
    parser.add_argument(
        "--facts", type=Path, required=True, help="JSON: data, voices, languages, licence, limits, seed"
    )
    parser.add_argument("--results", type=Path, nargs="*", default=[], help="JSON files of the second look's benchmark")
    parser.add_argument("--system", default="verified, proposed by windows", help="which of their systems it is")
    parser.add_argument("--into", type=Path, default=SHIPPED, help="folder that the model's folder is made in")
    parser.add_argument("--overwrite", action="store_true", help="replace a model of this name")
    given = parser.parse_args()
    with one_line_errors():
        facts = json.loads(given.facts.read_text(encoding="utf-8"))
        results = [json.loads(path.read_text(encoding="utf-8")) for path in given.results]
        rows = recall_rows_of(results, given.system)
        folder = ship_model(given.model, given.into / given.name, facts, rows, overwrite=given.overwrite)
        print(f"{folder}: {sum(path.stat().st_size for path in folder.iterdir()) / 1e6:.1f} MB")
