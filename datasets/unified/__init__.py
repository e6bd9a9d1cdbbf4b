"""The unified training dataset: MSLS, Pitts30k and SF-XL, cut into places in the GSV-Cities format.

`build` makes it. The command is `python -m datasets.unified`.
"""

from datasets.unified.builder import build
from datasets.unified.config import CITIES, UnifiedConfig, output_names
from datasets.unified.planning import CitySummary

__all__ = ["CITIES", "CitySummary", "UnifiedConfig", "build", "output_names"]
