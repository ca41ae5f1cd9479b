"""Models that came along: a folder each, with `config.json`, weights in float16, a card, and `about.json`.

`models/weights/shipped.py` finds them, `scripts/ship_model.py` makes them.
"""
