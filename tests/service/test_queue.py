"""The queue of images that wait to be described."""

import threading

import numpy as np
import pytest
import torch

from model import Description, Prepared
from utils.service.queue import Busy, DescriptionQueue


def image(number):
    return Prepared(torch.full((3, 2, 2), float(number)))


class Model:
    """Describes an image by its number, when it may. batches: the sizes of what it described; threads: its callers."""

    def __init__(self):
        self.may_go, self.batches, self.threads = threading.Event(), [], set()

    def __call__(self, images):
        assert self.may_go.wait(10)
        self.batches.append(len(images))
        self.threads.add(threading.get_ident())
        return Description(None, np.stack([each.pixels[0, 0].numpy() for each in images]))


@pytest.fixture
def model():
    return Model()


@pytest.fixture
def waiting(model):
    waiting = DescriptionQueue(model, 3)
    yield waiting
    model.may_go.set()
    waiting.close()


def test_images_that_wait_together_are_described_together_by_one_thread(model, waiting):
    described = [waiting.describe(image(i)) for i in range(20)]
    model.may_go.set()
    assert [each.result(10).descriptor[0, 0] for each in described] == list(range(20))
    assert max(model.batches) == 8 and sum(model.batches) == 20 and len(model.threads) == 1
    assert (waiting.images, waiting.batches) == (20, len(model.batches))


def test_beyond_its_length_it_says_when_to_come_back(waiting):
    with waiting.place(), waiting.place():
        with waiting.place(), pytest.raises(Busy, match="Try again in 1 s"), waiting.place():
            pass
        with waiting.place():
            assert waiting.taken == 3
    assert waiting.taken == 0


def test_an_error_of_the_model_reaches_all_who_wait_and_the_queue_goes_on(model, waiting):
    model.may_go.set()
    described = [waiting.describe(Prepared(None)), waiting.describe(image(1))]
    with pytest.raises(TypeError):
        described[0].result(10)
    assert described[1].exception(10) is None or isinstance(described[1].exception(), TypeError)
    assert waiting.describe(image(2)).result(10).descriptor[0, 0] == 2


def test_what_waits_when_it_is_closed_is_described(model, waiting):
    described = [waiting.describe(image(i)) for i in range(10)]
    closing = threading.Thread(target=waiting.close)
    closing.start()
    model.may_go.set()
    closing.join(10)
    assert [each.result(0).descriptor[0, 0] for each in described] == list(range(10))
