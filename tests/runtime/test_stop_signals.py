"""Stop signals: at once, delayed, deferred, repeated."""

import contextlib
import os
import signal
import sys
import time

import pytest

from utils.runtime.signals import EXIT_STATUS, Stopped, StopSignals, ignore_stop_signals

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="signals are sent and handled as on Unix")


@pytest.fixture
def signals():
    """StopSignals, installed; afterwards everything handles the signals as before."""
    handlers = {number: signal.signal(number, signal.SIG_DFL) for number in EXIT_STATUS}  # nohup ignores SIGHUP
    signals = StopSignals()
    signals.install()
    yield signals
    sys.unraisablehook = sys.__unraisablehook__
    for number, handler in handlers.items():
        signal.signal(number, handler)


def send(number):
    """Sends this process a signal, and lets Python handle it."""
    os.kill(os.getpid(), number)
    time.sleep(0.01)


@pytest.mark.parametrize("number", EXIT_STATUS)
def test_a_signal_stops_at_once(signals, number):
    assert EXIT_STATUS[number] == (130 if number == signal.SIGINT else 143)
    with pytest.raises(Stopped) as stopped:
        send(number)
    assert stopped.value.signal == signals.received == number


@pytest.mark.parametrize("number", EXIT_STATUS)
def test_a_delayed_signal_stops_at_the_end_of_the_outermost_block(signals, number):
    steps = []
    with pytest.raises(Stopped), signals.delayed():
        with signals.delayed():
            send(number)
            send(number)
            steps.append("inner")
        steps.append("outer")
    assert steps == ["inner", "outer"] and signals.received == number


def test_a_signal_does_not_hide_the_error_of_a_delayed_block(signals):
    with pytest.raises(OSError), signals.delayed():
        send(signal.SIGTERM)
        raise OSError("the disk is full")
    with pytest.raises(Stopped), signals.delayed():
        pass


def test_further_signals_do_not_disturb_the_cleanup(signals, monkeypatch):
    done = []
    with pytest.raises(Stopped) as stopped:
        try:
            send(signal.SIGTERM)
        finally:
            send(signal.SIGTERM)
            send(signal.SIGINT)
            done.append("cleanup")
    assert done and stopped.value.signal == signal.SIGTERM
    monkeypatch.setattr("utils.runtime.signals.CLEANUP_SECONDS", 0)
    with pytest.raises(Stopped):  # something swallowed the exception, and the script goes on
        send(signal.SIGTERM)


class SendsInItsFinalizer:
    def __del__(self):
        send(signal.SIGTERM)


def lose_in_a_finalizer():
    SendsInItsFinalizer()


def lose_in_a_library():
    with contextlib.suppress(BaseException):
        send(signal.SIGTERM)


@pytest.mark.parametrize("lose", [lose_in_a_finalizer, lose_in_a_library])
@pytest.mark.parametrize("deferred", [False, True])
def test_a_signal_whose_exception_was_lost_is_raised_again(signals, lose, deferred):
    if deferred:  # as during training, whose validation runs in such a block
        signals.defer()
    with pytest.raises(Stopped) as stopped, signals.interruptible() if deferred else contextlib.nullcontext():
        lose()
        time.sleep(5)
    assert stopped.value.signal == signal.SIGTERM


def test_a_lost_signal_is_raised_at_the_end_of_a_script_or_of_a_file(signals):
    lose_in_a_library()
    with pytest.raises(Stopped):
        signals.raise_lost()
    lose_in_a_library()
    with pytest.raises(Stopped), signals.delayed():
        pass


def test_an_exception_on_its_way_is_not_lost(signals):
    with pytest.raises(Stopped) as stopped:
        send(signal.SIGTERM)
    time.sleep(0.2)
    assert stopped and not signals.is_lost
    signals.raise_lost()


@pytest.mark.parametrize("number", EXIT_STATUS)
def test_a_deferred_signal_is_remembered_and_interrupts_only_where_it_may(signals, number):
    signals.defer()
    send(number)
    assert signals.received == number
    with signals.delayed():
        pass
    with pytest.raises(Stopped), signals.interruptible():
        pytest.fail("a signal that came before must end the block at its start")


def test_a_signal_in_an_interruptible_block(signals):
    signals.defer()
    with signals.interruptible():
        pass
    with pytest.raises(Stopped), signals.interruptible():
        send(signal.SIGTERM)
        pytest.fail("the block went on")
    assert signals.received == signal.SIGTERM


def test_a_second_ctrl_c_ends_a_deferred_step_at_once(signals):
    signals.defer()
    send(signal.SIGTERM)  # whatever came before
    send(signal.SIGINT)
    with pytest.raises(Stopped):
        send(signal.SIGINT)


def test_a_second_ctrl_c_waits_for_a_file_that_is_being_written(signals):
    signals.defer()
    send(signal.SIGINT)
    steps = []
    with pytest.raises(Stopped), signals.delayed():
        send(signal.SIGINT)
        steps.append("written")
    assert steps == ["written"]


def test_torchrun_repeats_ctrl_c(signals, monkeypatch, capfd):
    monkeypatch.setenv("RANK", "0")
    signals.defer()
    send(signal.SIGINT)
    send(signal.SIGINT)
    assert signals.received == signal.SIGINT and "again" not in capfd.readouterr().err


def test_a_signal_left_to_the_system_ends_the_process(signals):
    child = os.fork()
    if child == 0:
        with signals.left_to_the_system():
            send(signal.SIGTERM)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGTERM
    with signals.left_to_the_system():
        pass
    with pytest.raises(Stopped):
        send(signal.SIGTERM)


def test_nohup_is_respected(signals):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signals.install()
    send(signal.SIGHUP)
    assert signals.received is None


def test_a_worker_that_was_forked_just_now_leaves_signals_to_the_main_process(signals):
    worker = os.fork()
    if worker == 0:
        try:
            send(signal.SIGTERM)
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitpid(worker, 0)[1] == 0


def test_workers_outlive_the_signals(signals):
    ignore_stop_signals()
    for number in EXIT_STATUS:
        send(number)
    assert signals.received is None
