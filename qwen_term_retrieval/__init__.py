"""Hear a term in speech and find it in a glossary."""
