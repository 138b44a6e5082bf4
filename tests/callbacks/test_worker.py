import threading
import time

import pytest
import torch

from rank_callbacks.callbacks.worker import Worker


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if "rank_callbacks" in thread.name]


def test_result_is_that_of_the_job() -> None:
    worker: Worker[float] = Worker()
    worker.start(lambda: float(torch.eye(3).sum()))
    assert worker.result() == 3
    worker.start(lambda: 4.0)
    assert worker.result() == 4
    worker.close()


def test_busy_until_the_job_is_done() -> None:
    worker, release = Worker[bool](), threading.Event()
    assert not worker.is_busy
    worker.start(lambda: release.wait(60))
    assert worker.is_busy
    release.set()
    assert worker.result()
    assert not worker.is_busy
    worker.close()


def test_exception_of_the_job_is_raised_once() -> None:
    worker: Worker[float] = Worker()
    worker.start(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        worker.result()
    worker.start(lambda: 1.0)
    assert worker.result() == 1
    worker.close()


def test_no_result_without_a_job() -> None:
    with pytest.raises(RuntimeError, match="Expected a job"):
        Worker().result()


def test_thread_lives_from_the_first_job_to_the_end() -> None:
    worker: Worker[int] = Worker()
    assert threads() == []
    worker.start(lambda: 1)
    assert len(threads()) == 1
    worker.close()
    assert threads() == []
    worker.close()


def test_close_waits_for_the_job() -> None:
    worker, done = Worker[None](), []
    worker.start(lambda: done.append(time.sleep(0.2)))
    worker.close()
    assert done == [None]


def test_one_core_for_the_job_and_as_many_as_before_for_others() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        worker, elsewhere = Worker[int](), []
        worker.start(torch.get_num_threads)
        assert worker.result() == 1
        assert torch.get_num_threads() == 2
        thread = threading.Thread(target=lambda: elsewhere.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert elsewhere == [2]
        worker.close()
    finally:
        torch.set_num_threads(before)


def test_job_takes_no_more_than_one_core() -> None:
    """Of LAPACK, which has a number of threads of its own."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        worker: Worker[tuple[float, float]] = Worker()
        matrix = torch.randn(1200, 1200, dtype=torch.float64)

        def job() -> tuple[float, float]:
            cpu, wall = time.process_time(), time.perf_counter()
            torch.linalg.eigvalsh(matrix @ matrix.mT)
            return time.process_time() - cpu, time.perf_counter() - wall

        worker.start(job)
        cpu, wall = worker.result()
        assert cpu < 1.2 * wall
        worker.close()
    finally:
        torch.set_num_threads(before)


def test_job_has_no_autograd() -> None:
    worker, weight = Worker[bool](), torch.ones(2, requires_grad=True)
    worker.start(lambda: (2 * weight).requires_grad)
    assert not worker.result()
    worker.close()
