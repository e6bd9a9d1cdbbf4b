"""What an index does to the descriptors of a model before it stores them."""

from typing import NamedTuple

import numpy as np

from .coding import Coding
from .pca import PCA

PCA_FILE, CODING_FILE = "pca.bin", "coding.bin"


class Projections(NamedTuple):
    """PCA, which reduces descriptors, and the coding of what it gives; None for what is not used."""

    pca: PCA | None = None
    coding: Coding | None = None

    def apply(
        self, code: np.ndarray | None, descriptor: np.ndarray | None
    ) -> tuple[np.ndarray | None, np.ndarray | None]:
        """The codes and descriptors of a model, [..., bits / 8] uint8 and [..., dim], as the index stores them."""
        if self.pca and descriptor is not None:
            descriptor = self.pca.project(descriptor)
        if self.coding and descriptor is not None:
            code = self.coding.encode(descriptor)
        return code, descriptor

    def descriptor_dim(self, model_dim: int) -> int:
        """The dimension of stored descriptors, where the model's have this one."""
        return self.pca.dim if self.pca else model_dim

    def code_bits(self, model_bits: int) -> int:
        """The length of stored codes, where the model's have this one; 0: it gives none."""
        return self.coding.bits if self.coding else model_bits

    @property
    def files(self) -> dict[str, bytes]:
        """{file of the index: its content, little-endian float32}."""
        files = {} if self.pca is None else {PCA_FILE: self.pca.to_bytes()}
        return files if self.coding is None else files | {CODING_FILE: self.coding.rows.astype("<f4").tobytes()}


NO_PROJECTIONS = Projections()
