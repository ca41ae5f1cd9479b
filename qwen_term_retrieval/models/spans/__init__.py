"""Spans of frames to vectors that remember their order.

windows.py             the grid of spans that a clip is searched with
pooling.py             means of a span and of its parts
attention_pooling.py   learned weights in place of means
"""
