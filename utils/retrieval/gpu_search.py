"""Exact Hamming search with matrix products on a device, a block of the database at a time."""

import logging

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

DATABASE_BLOCK, QUERY_BLOCK = 1 << 17, 512  # codes; the largest temporary tensors take 256 MB
MIN_DATABASE_BLOCK = 1 << 12


def search_hamming_on_device(
    database: np.ndarray, queries: np.ndarray, k: int, *, device: str | torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """Distances int32 and indices int64, [Q, K], of the k nearest of database [N, b] to queries [Q, b].

    Packed codes of 8*b bits, at most 2048. K is min(k, N). Among equal distances the smaller index comes first. Where
    the device's memory does not suffice, the blocks of the database are halved. Raises torch.OutOfMemoryError if it
    does not suffice for blocks of MIN_DATABASE_BLOCK codes.
    """
    block_size = DATABASE_BLOCK
    while True:
        try:
            return _search(database, queries, k, block_size=block_size, device=torch.device(device))
        except torch.OutOfMemoryError:
            if block_size <= MIN_DATABASE_BLOCK:
                raise
        # Outside the except block: the exception holds the frames, and so the tensors, that filled the memory.
        torch.cuda.empty_cache()
        block_size //= 2
        logging.warning("GPU out of memory during the search; retrying with blocks of %d codes.", block_size)


def _search(
    database: np.ndarray, queries: np.ndarray, k: int, *, block_size: int, device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    query_signs = [_signs(block, device) for block in np.split(queries, range(QUERY_BLOCK, len(queries), QUERY_BLOCK))]
    # distance * N + index: the smallest keys are those of the smallest distances and, among equal ones, indices.
    best = [torch.empty(len(signs), 0, dtype=torch.int64, device=device) for signs in query_signs]
    starts = range(0, len(database), block_size)
    for start in tqdm(starts, desc="Searching", unit="block", leave=False, disable=len(starts) < 2):
        signs = _signs(database[start : start + block_size], device)
        positions = torch.arange(len(signs), dtype=torch.int32, device=device)
        for i, block in enumerate(query_signs):
            distances = (signs.shape[1] - (block @ signs.T).int()) // 2
            # Keys of the block alone fit into 32 bits, which are faster to select.
            keys = _smallest(distances * len(signs) + positions, k).long()
            keys = keys // len(signs) * len(database) + keys % len(signs) + start
            best[i] = _smallest(torch.cat([best[i], keys], dim=1), k)
    found = torch.cat(best).cpu().numpy()
    return (found // len(database)).astype(np.int32), found % len(database)


def _signs(codes: np.ndarray, device: torch.device) -> Tensor:
    """Packed codes [n, b] uint8 -> [n, 8*b] of -1 and +1 on the device.

    In float16, because products of two such rows are whole numbers of at most 2048, which it holds exactly.
    """
    bits = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8, device=device)
    packed = torch.from_numpy(np.ascontiguousarray(codes)).to(device)
    is_set = (packed[..., None] & bits).flatten(1) > 0
    return is_set.half() * 2 - 1


def _smallest(keys: Tensor, k: int) -> Tensor:
    """The k smallest of each row [n, m], in ascending order; all of them if there are fewer."""
    return keys.topk(min(k, keys.shape[1]), largest=False, sorted=True).values
