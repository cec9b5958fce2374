import threading
import time

from rewards.watch import Watch


def test_a_slow_reward_is_named_once_while_it_runs() -> None:
    watch, go_on = Watch(slow_s=0.05), threading.Event()

    def work() -> None:
        with watch.timed("t/1", "code"):
            go_on.wait(10)

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(0.1)
    (slow,) = watch.slow()
    assert (slow.task_id, slow.part, slow.running) == ("t/1", "code", True)
    assert slow.seconds > 0.05
    assert str(slow).startswith("slow reward: code has been running for 0.")
    assert str(slow).endswith("s on task t/1")
    go_on.set()
    thread.join()
    assert watch.slow() == []


def test_a_slow_reward_that_has_ended_is_named_and_a_fast_one_is_not() -> None:
    watch = Watch(slow_s=0.05)
    with watch.timed("t/1", "math"):
        pass
    with watch.timed("t/2", "math"):
        time.sleep(0.1)
    (slow,) = watch.slow()
    assert (slow.task_id, slow.running) == ("t/2", False)
    assert str(slow) == f"slow reward: math took {slow.seconds:.1f} s on task t/2"
