import io
import threading
import time

import pytest

from toolkit.cli.progress import Progress
from toolkit.core.progress import duration
from toolkit.core.study import Proposal, TrialRecord, TrialResult, TrialState


def record(number, value=0.5, state=TrialState.COMPLETE):
    values = (value,) if state is TrialState.COMPLETE else ()
    return TrialRecord(number, state, {}, TrialResult(number, values=values))


def begun(progress, **changes):
    values = {"num_trials": 10, "num_already_done": 0, "num_slots": 2, "metric": "auc", "direction": "maximize"}
    progress.begin(**{**values, **changes})
    return progress


def quiet():
    return Progress(io.StringIO(), terminal=False, every_s=60)


def test_nothing_is_said_before_the_search():
    assert quiet().line() == ""


def test_what_runs_and_what_is_done():
    progress = begun(quiet(), num_already_done=3)
    for number in (3, 4):
        progress.trial_started(Proposal(number, {}), 0.0)
    assert progress.line() == "3/10 trials, 2/2 slots"
    progress.trial_ended(record(3, 0.8))
    assert progress.line().startswith("4/10 trials, 1/2 slots, best auc 0.8 (trial 3), ")
    assert " left" in progress.line()


def test_pruned_and_failed_are_counted_and_never_best():
    progress = begun(quiet())
    progress.trial_ended(record(0, state=TrialState.PRUNED))
    progress.trial_ended(record(1, state=TrialState.FAILED))
    assert "2/10 trials" in progress.line()
    assert "1 pruned, 1 failed" in progress.line()
    assert "best" not in progress.line()


@pytest.mark.parametrize(("direction", "best"), [("maximize", "best m 0.9 (trial 1)"), ("minimize", "best m 0.1 (trial 2)")])
def test_best_follows_the_direction(direction, best):
    progress = begun(quiet(), direction=direction, metric="m")
    for number, value in enumerate([0.5, 0.9, 0.1, 0.5]):
        progress.trial_ended(record(number, value))
    assert best in progress.line()


def test_a_resumed_search_knows_the_best_so_far():
    progress = begun(quiet(), num_already_done=5, best=0.9)
    progress.trial_ended(record(6, 0.8))
    assert "best auc 0.9" in progress.line()


def test_a_requeued_trial_leaves_its_slot():
    progress = begun(quiet())
    progress.trial_started(Proposal(0, {}), 0.0)
    progress.trial_requeued(0)
    progress.trial_requeued(0)
    assert "0/2 slots" in progress.line()


def test_nothing_is_left_at_the_end():
    progress = begun(quiet(), num_trials=1)
    progress.trial_ended(record(0))
    assert " left" not in progress.line()


def test_the_rate_stands_still_when_all_is_done():
    progress = begun(quiet(), num_trials=1)
    time.sleep(0.01)
    progress.trial_ended(record(0))
    line = progress.line()
    time.sleep(0.05)
    assert progress.line() == line


def test_a_pipe_gets_plain_lines():
    stream = io.StringIO()
    with Progress(stream, terminal=False, every_s=0.02) as progress:
        progress.phase("starting Ray")
        begun(progress)
        for number in range(5):
            progress.trial_started(Proposal(number, {}), 0.0)
            progress.trial_ended(record(number))
        deadline = time.monotonic() + 5
        while stream.getvalue().count("\n") < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "starting Ray"
    assert lines[1].startswith("5/10 trials, 0/2 slots, best auc 0.5 (trial 0)")
    assert len(lines) == 2  # nothing happened after that, so nothing more is said
    assert "\x1b" not in stream.getvalue()


def test_the_last_state_is_always_told():
    stream = io.StringIO()
    with Progress(stream, terminal=False, every_s=60) as progress:
        begun(progress, num_trials=1)
        progress.trial_ended(record(0))
    assert stream.getvalue().startswith("1/1 trials")


def test_a_terminal_gets_a_live_line():
    stream = io.StringIO()
    with Progress(stream, terminal=True) as progress:
        progress.phase("searching")
        begun(progress)
        progress.trial_ended(record(0, 0.75))
    assert "searching" in stream.getvalue()
    assert "best auc 0.75" in stream.getvalue()
    assert not [thread for thread in threading.enumerate() if thread.name == "progress"]


def test_a_closed_stream_ends_nothing():
    stream = io.StringIO()
    with Progress(stream, terminal=False, every_s=60) as progress:
        stream.close()
        progress.phase("searching")
        begun(progress).trial_ended(record(0))


def test_many_threads():
    progress = begun(quiet(), num_trials=800)

    def work(start):
        for number in range(start, start + 100):
            progress.trial_started(Proposal(number, {}), 0.0)
            progress.trial_ended(record(number, number / 1000))

    threads = [threading.Thread(target=work, args=(100 * i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert "800/800 trials, 0/2 slots, best auc 0.799 (trial 799)" in progress.line()


@pytest.mark.parametrize(("seconds", "text"), [(3.4, "3 s"), (75, "1 min 15 s"), (3700, "1 h 01 min")])
def test_duration(seconds, text):
    assert duration(seconds) == text
