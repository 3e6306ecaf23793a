"""Signals that ask a stage to stop."""

import os
import signal
import time
from multiprocessing import get_context

from teacherlm.interrupts import Stop


def test_a_signal_is_remembered_until_the_signals_are_given_back() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    stop = Stop()
    assert not stop.asked
    os.kill(os.getpid(), signal.SIGUSR1)
    assert stop.asked
    stop.restore()
    assert signal.getsignal(signal.SIGUSR1) is before


def test_a_forked_child_ends_at_the_signal() -> None:
    """lm-eval's bootstrap forks a pool and ends it with SIGTERM; children that stay would make it wait for ever."""
    stop = Stop()
    try:
        child = get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()
        time.sleep(0.2)
        child.terminate()
        child.join(30)
        assert child.exitcode == -signal.SIGTERM
        assert not stop.asked
    finally:
        stop.restore()
