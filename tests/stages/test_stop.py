"""Signals that ask a stage to stop."""

import os
import signal
import time
from multiprocessing import get_context

from teacherlm.core.interrupts import Stop


def test_a_signal_is_remembered_until_the_signals_are_given_back() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    stop = Stop()
    assert not stop.requested
    os.kill(os.getpid(), signal.SIGUSR1)
    assert stop.requested
    stop.restore()
    assert signal.getsignal(signal.SIGUSR1) is before


def test_forked_children_end_at_the_signal_however_soon_it_comes() -> None:
    """lm-eval's bootstrap forks a pool and ends it with SIGTERM. If a child did not end, it would wait for ever.

    A Python handler in the child would not be enough: Python runs it only after a wait in C, which might never end.
    """
    stop = Stop()
    try:
        for delay in (0, 0, 0, 0.001, 0.003, 0.01, 0.2):
            child = get_context("fork").Process(target=wait_for_ever)
            child.start()
            time.sleep(delay)
            child.terminate()
            child.join(20)
            assert child.exitcode == -signal.SIGTERM
        assert not stop.requested
    finally:
        stop.restore()


def wait_for_ever() -> None:
    lock = get_context("fork").Lock()
    lock.acquire()
    lock.acquire()
