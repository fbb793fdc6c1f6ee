"""One driver per folder of an object store."""

import threading
import time

import pytest
from object_store import take_away_lock

from qb_cluster.errors import RunFolderError
from qb_cluster.storage import StorageError, object_lock, open_folder
from qb_cluster.storage.object_folder import ObjectFolder
from qb_cluster.storage.object_lock import ObjectLock

BEAT_S, STALE_S = 0.05, 0.6
LONG_S = 60.0  # without a beat for so long nobody who lives goes stale, however slow the machine


@pytest.fixture
def folder(s3_place):
    return open_folder(s3_place)


def take(folder, stale_s=STALE_S):
    return ObjectLock.take(folder, BEAT_S, stale_s)


def die(lock):
    """Leave a lock as a driver leaves it that is killed."""
    lock._stop.set()
    lock._thread.join()


def test_a_live_holder_is_told_by_its_heart_and_named(folder):
    with_lock = take(folder, stale_s=LONG_S)
    began = time.monotonic()
    with pytest.raises(RunFolderError, match=r"in use by another driver \(process \d+ on .*--out"):
        take(folder, stale_s=LONG_S)
    assert time.monotonic() - began < LONG_S / 2
    with_lock.check()
    with_lock.release()
    take(folder).release()


def test_the_lock_of_a_dead_driver_is_taken_over_once_it_is_stale(folder, monkeypatch):
    monkeypatch.setattr(object_lock, "_RESOLUTION_S", LONG_S)  # the store's clock tells nothing
    die(take(folder))
    began = time.monotonic()
    second = take(folder)
    assert time.monotonic() - began > STALE_S
    assert len(folder.names(".lock")) == 1
    second.release()


def test_the_lock_of_a_driver_that_died_long_ago_is_taken_over_at_once(folder, monkeypatch):
    die(take(folder, stale_s=0.1))
    time.sleep(2.2)  # the store's clock ticks in seconds
    monkeypatch.setattr(object_lock, "_await_the_end", lambda *_: pytest.fail("it waited"))
    take(folder, stale_s=0.1).release()


def test_of_many_who_come_at_once_one_at_most_gets_it(folder):
    got, refused = [], []

    def contend():
        try:
            got.append(take(folder, stale_s=LONG_S))
        except RunFolderError:
            refused.append(1)

    threads = [threading.Thread(target=contend) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1
    assert len(refused) == 3
    got[0].release()
    assert folder.names(".lock") == []


def test_a_lock_that_is_rewritten_while_it_is_read_is_read_again(folder, monkeypatch):
    first, real = take(folder, stale_s=LONG_S), ObjectFolder.read
    failures = iter([True, True])

    def read(self, name):
        if next(failures, False):  # such a read cannot be timed from outside
            raise StorageError("the answer ended too early")
        return real(self, name)

    monkeypatch.setattr(ObjectFolder, "read", read)
    with pytest.raises(RunFolderError, match="in use by another driver"):
        take(folder, stale_s=LONG_S)
    assert next(failures, None) is None
    first.release()


def test_a_driver_that_slept_and_lost_its_lock_writes_no_more(folder):
    asleep = take(folder)
    die(asleep)
    take(folder).release()
    with pytest.raises(RunFolderError, match="another driver may have this run"):
        asleep.check()


def test_a_driver_that_slept_within_a_beat_and_lost_its_lock_writes_no_more(folder, monkeypatch):
    real, sleeps, awake = ObjectFolder.size, threading.Event(), threading.Event()

    def size(self, name):
        there = real(self, name)
        if threading.current_thread().name == "qb-lock" and not sleeps.is_set():
            sleeps.set()  # between the look at the lock and its rewriting
            awake.wait(LONG_S)
        return there

    monkeypatch.setattr(ObjectFolder, "size", size)
    lock = take(folder)
    assert sleeps.wait(LONG_S)
    take(folder).release()  # the lock of one who sleeps has gone stale
    other = take(folder, stale_s=LONG_S)
    awake.set()
    lock._thread.join(LONG_S)
    with pytest.raises(RunFolderError, match="another driver may have this run"):
        lock.check()
    lock.release()
    other.check()
    other.release()


def test_a_driver_whose_lock_was_taken_away_finds_out(folder):
    lock = take(folder, stale_s=LONG_S)
    take_away_lock(folder)
    with pytest.raises(RunFolderError, match="another driver may have this run"):
        lock.check()
    lock.release()
