"""Evaluation protocols: which queries, which database and which threshold a published recall refers to.

Recalls are comparable only within one protocol. A benchmark is recognised by its counts, its threshold and, where these
do not suffice, by its file names and positions.
"""

from datasets.protocols.recognition import Recognition, recognise
from datasets.protocols.table import PROTOCOLS, Protocol

__all__ = ["PROTOCOLS", "Protocol", "Recognition", "recognise"]
