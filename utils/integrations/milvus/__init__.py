"""An index in Milvus: exact search by codes on its servers, re-ranking here with the descriptors of the candidates.

Results are those of the index in a folder, in the same order.
"""

from utils.integrations.milvus.reader import MilvusIndex
from utils.integrations.milvus.writer import export_index

__all__ = ["export_index", "open_index"]

open_index = MilvusIndex
