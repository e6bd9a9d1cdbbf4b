"""The paper's claims in miniature: its comparisons, with a vit-tiny on synthetic cities.

    python -m benchmarks.claims

A vit-tiny is trained on one domain of synthetic cities, its backbone is frozen, and variants of the method adapt it to
another domain. The variants are in this package, not in the model's.
"""
