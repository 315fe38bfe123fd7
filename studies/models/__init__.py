"""Which models are measured, and how well: ``python -m studies.models``.

``cases`` and ``libraries`` list models, each with an independent truth; tests run the same list.
"""
