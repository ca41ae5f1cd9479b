import ast
from pathlib import Path

import qwen_term_retrieval


def test_type_checkers_see_every_public_name_where_it_comes_from():
    """Names that only `__getattr__` gives are `Any` to mypy and unknown to an editor."""
    (block,) = (
        node
        for node in ast.parse(Path(qwen_term_retrieval.__file__).read_text()).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    seen = {alias.asname: node.module for node in block.body for alias in node.names}
    assert seen == {name: f"qwen_term_retrieval.{home}" for name, home in qwen_term_retrieval._HOME.items()}
