"""One scoring at a time on an output: real processes, killed, stopped and racing."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.commands import wait_until
from toolkit.core.errors import ScoringError
from toolkit.core.promotion import ProcessId
from toolkit.engines import lease
from toolkit.engines.lease import Lease
from toolkit.engines.processes import this_process

pytestmark = pytest.mark.engine

QUICK = {"RENEW_S": 0.05, "STALE_S": 1.0, "WATCH_S": 0.5, "SETTLE_S": 0.1}
SCRIPT = f"""
import fcntl, os, sys
from pathlib import Path
from toolkit.core.errors import ScoringError
from toolkit.core.promotion import ProcessId
from toolkit.engines import lease
vars(lease).update({QUICK!r})
folder, machine, user = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
if machine:
    lease.this_process = lambda: ProcessId("far", machine, os.getpid(), "")
print("ready", flush=True)
"""
# Takes the lease, and looks at it for each line.
HOLDER = (
    SCRIPT
    + """
with lease.Lease(folder, "scores", user) as held:
    print("held", flush=True)
    for line in sys.stdin:
        try:
            held.check()
            print("ours", flush=True)
        except ScoringError as error:
            print(error, flush=True)
"""
)
# For each line waits for a file of that name, then tries; whoever is in has a lock of the kernel's, so that two at once are seen.
RACER = (
    SCRIPT
    + """
for line in sys.stdin:
    while not (folder / line.strip()).exists():
        pass
    try:
        with lease.Lease(folder, "scores", user) as held:
            alone = os.open(folder / "alone", os.O_CREAT | os.O_RDWR)
            try:
                fcntl.flock(alone, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held.check()
                print("won", flush=True)
            except BlockingIOError:
                print("two at once", flush=True)
            sys.stdin.readline()
            os.close(alone)
        print("gave back", flush=True)
    except ScoringError as error:
        print(error, flush=True)
"""
)


class Process:
    def __init__(self, script: str, folder: Path, user: str, machine: str = "") -> None:
        command = [sys.executable, "-c", script, str(folder), machine, user]
        self.popen = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1)
        assert self.answer() == "ready", self.popen.communicate()[1]

    def answer(self) -> str:
        assert self.popen.stdout is not None
        return self.popen.stdout.readline().strip()

    def ask(self, line: str = "") -> None:
        assert self.popen.stdin is not None
        self.popen.stdin.write(f"{line}\n")
        self.popen.stdin.flush()

    def kill(self) -> None:
        self.popen.kill()
        self.popen.communicate()


Start = Callable[..., Process]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Process] = []

    def one(script: str = HOLDER, user: str = "alice", machine: str = "") -> Process:
        started.append(Process(script, tmp_path, user, machine))
        if script == HOLDER:
            assert started[-1].answer() == "held"
        return started[-1]

    yield one
    for process in started:
        process.kill()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in QUICK.items():
        monkeypatch.setattr(lease, name, value)


def files(folder: Path) -> list[str]:
    return sorted(os.listdir(folder / "leases"))


def newest(folder: Path) -> dict[str, object]:
    return dict(json.loads((folder / "leases" / files(folder)[-1]).read_text()))


def take(folder: Path, user: str = "bob") -> None:
    with Lease(folder, "scores", user) as held:
        held.check()


# ---- one after the other


def test_given_back_it_is_free(tmp_path: Path) -> None:
    for _ in range(lease.KEPT + 5):
        take(tmp_path)
        assert newest(tmp_path)["is_free"]
    assert files(tmp_path) == [f"{number:09d}.json" for number in range(5, lease.KEPT + 6)]


def test_given_back_when_the_scoring_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Lease(tmp_path, "scores", "bob"):
        _ = 1 / 0
    assert newest(tmp_path)["is_free"]


def test_it_is_renewed(tmp_path: Path) -> None:
    with Lease(tmp_path, "scores", "bob"):
        before = newest(tmp_path)
        wait_until(lambda: newest(tmp_path) != before, 10)
        assert {**newest(tmp_path), "renewed_unix_s": 0} == {**before, "renewed_unix_s": 0}


def test_the_second_is_told_who_has_it(tmp_path: Path, start: Start) -> None:
    holder = start()
    with pytest.raises(ScoringError) as error, Lease(tmp_path, "scores", "bob"):
        pass
    message, pid = str(error.value), holder.popen.pid
    assert message.startswith(f"one scoring of scores at a time, got another one, by alice on {this_process().host} (pid {pid}), since 20")
    assert message.endswith(f" s ago; wait for it, or end process {pid}")
    holder.ask()
    assert holder.answer() == "ours"


def test_not_twice_in_one_process(tmp_path: Path) -> None:
    with Lease(tmp_path, "scores", "alice") as held:
        with pytest.raises(ScoringError, match=f"by alice on .*end process {os.getpid()}"):
            take(tmp_path)
        held.check()


def test_one_that_this_process_has_lost_track_of(tmp_path: Path) -> None:
    """Ctrl-C while it is given back, in a notebook: the process lives on."""
    broken_off = Lease(tmp_path, "scores", "alice").__enter__()
    broken_off._ended.set()
    lease._held.clear()
    take(tmp_path)


# ---- the dead


def test_a_killed_holder_is_taken_over_at_once(tmp_path: Path, start: Start, caplog: pytest.LogCaptureFixture) -> None:
    holder = start()
    holder.kill()
    take(tmp_path)
    assert f"the lease of scores is taken over from alice on {this_process().host} (pid {holder.popen.pid})" in caplog.text


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_gives_it_back(tmp_path: Path, start: Start, kind: signal.Signals) -> None:
    holder = start()
    holder.popen.send_signal(kind)
    assert "KeyboardInterrupt" in holder.popen.communicate(timeout=20)[1]
    assert newest(tmp_path)["is_free"]


def test_the_signal_is_as_it_was_afterwards(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    take(tmp_path)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_stopped_process_of_this_machine_is_not_dead(tmp_path: Path, start: Start) -> None:
    holder = start()
    holder.popen.send_signal(signal.SIGSTOP)
    before = newest(tmp_path)
    threading.Event().wait(3 * QUICK["STALE_S"])
    assert newest(tmp_path) == before
    with pytest.raises(ScoringError, match=f"or end process {holder.popen.pid}"):
        take(tmp_path)
    holder.popen.send_signal(signal.SIGCONT)
    holder.ask()
    assert holder.answer() == "ours"


def test_a_stopped_one_of_another_machine_is_taken_over_and_notices(tmp_path: Path, start: Start) -> None:
    holder = start(machine="another")
    with pytest.raises(ScoringError, match=r"by alice on far \(pid .*; wait for it: after 1 s without a sign it is taken over"):
        take(tmp_path)
    holder.popen.send_signal(signal.SIGSTOP)
    wait_until(lambda: is_taken(tmp_path), 30)
    holder.popen.send_signal(signal.SIGCONT)
    holder.ask()
    lost = holder.answer()
    assert lost.startswith("a scoring must keep its lease until it is done, got that of scores taken over by bob on ")
    assert lost.endswith("; run it again: it goes on after the last committed batch")
    holder.kill()
    assert newest(tmp_path)["user"] == "bob", "the late one has not touched it"


def test_a_taker_that_has_just_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The holder wakes between its look and its taking: whichever of its threads is first, nothing is committed before that has settled."""
    for by_heart in (True, False):
        with Lease(tmp_path, "scores", "alice") as held:
            held._ended.set()
            held._heart.join()
            held._me = dataclasses.replace(held._me, renewed_unix_s=held._me.renewed_unix_s - 3600)
            if by_heart:
                held._renew()
            with monkeypatch.context() as patch:
                patch.setattr("time.sleep", lambda _: put(tmp_path, this_process()))
                with pytest.raises(ScoringError, match="taken over by eve"):
                    held.check()
        shutil.rmtree(tmp_path / "leases")


def is_taken(folder: Path) -> bool:
    try:
        take(folder)
    except ScoringError:
        return False
    return True


@pytest.mark.parametrize("age_s", [3600, -3600])
def test_a_living_one_whose_clock_is_off(tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch, age_s: float) -> None:
    """Where the file system takes the writer's clock: it is renewed while it is watched."""
    start(machine="another")
    monkeypatch.setattr(Lease, "_age_s", lambda *_: age_s)
    with pytest.raises(ScoringError, match="by alice on far"):
        take(tmp_path)


def test_a_number_that_belongs_to_another_process_now(tmp_path: Path) -> None:
    put(tmp_path, dataclasses.replace(this_process(), started="1"))
    take(tmp_path)


def put(folder: Path, process: ProcessId) -> Path:
    holder = lease.Holder("eve", process, "token", 1.0, 1.0)
    path = folder / "leases" / f"{7:09d}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(holder.as_json()))
    return path


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', '{"format": 9, "of": "a newer toolkit"}'])
def test_a_damaged_one_is_held_until_it_is_old(tmp_path: Path, text: str) -> None:
    path = put(tmp_path, this_process())
    path.write_text(text)
    with pytest.raises(ScoringError, match="another one, by an unknown process, last sign 0 s ago; wait for it: after 1 s"):
        take(tmp_path)
    os.utime(path, (1, 1))
    take(tmp_path)
    assert newest(tmp_path)["user"] == "bob"


# ---- what may become of the file


def test_deleted(tmp_path: Path) -> None:
    with Lease(tmp_path, "scores", "alice") as held:
        shutil.rmtree(tmp_path / "leases")
        with pytest.raises(ScoringError, match="got that of scores deleted; run it again"):
            held.check()
        take(tmp_path)  # by somebody else, from the start
        with pytest.raises(ScoringError, match="must keep its lease"):
            held.check()
    assert newest(tmp_path)["user"] == "bob"


def test_made_twice_where_creation_is_not_exclusive(tmp_path: Path) -> None:
    with Lease(tmp_path, "scores", "alice") as held:
        held._ended.set()
        held._heart.join()
        put(tmp_path, this_process()).rename(tmp_path / "leases" / f"{1:09d}.json")
        with pytest.raises(ScoringError, match=r"got that of scores made by eve on .* at the same time"):
            held.check()
    assert not newest(tmp_path)["is_free"]


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "state").touch()
    with pytest.raises(ScoringError, match=r"state folder must be readable and writable, got .*leases: Not a directory; check its"):
        take(tmp_path / "state")


def test_it_cannot_be_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After that others may take it for dead: nothing is committed."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Lease(tmp_path, "scores", "alice") as held:
        with monkeypatch.context() as patch:
            patch.setattr(lease, "write_json", full)
            wait_until(lambda: is_refused(held, "No space left on device"), 20)
        held.check()


def is_refused(held: Lease, text: str) -> bool:
    try:
        held.check()
    except ScoringError as error:
        return text in str(error)
    return False


def test_without_hard_links(tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    holder = start()
    with pytest.raises(ScoringError, match="by alice on"):
        take(tmp_path)
    holder.kill()
    take(tmp_path)
    assert newest(tmp_path)["user"] == "bob" and not [name for name in files(tmp_path) if name.startswith(".")]


# ---- many at once


@pytest.mark.parametrize("rounds", [3, pytest.param(40, marks=pytest.mark.repeat)])
def test_one_of_many_takes_over_from_the_dead(tmp_path: Path, start: Start, rounds: int) -> None:
    holder = start()
    racers = [start(RACER, f"racer {number}") for number in range(8)]
    holder.kill()
    for number in range(rounds):
        for racer in racers:
            racer.ask(f"round-{number}")
        (tmp_path / f"round-{number}").touch()
        answers = [racer.answer() for racer in racers]
        assert answers.count("won") == 1, answers
        winner = racers[answers.index("won")]
        assert all(f"got another one, by racer {racers.index(winner)} on" in answer for answer in answers if answer != "won"), answers
        winner.kill()
        racers[racers.index(winner)] = start(RACER, f"racer {racers.index(winner)}")


@pytest.mark.parametrize("rounds", [3, pytest.param(40, marks=pytest.mark.repeat)])
def test_takers_are_killed_wherever_they_are(tmp_path: Path, start: Start, rounds: int) -> None:
    """Never two at once, and never nobody for ever."""
    delays_s = [0.0005 * number for number in range(rounds)]
    for number, delay_s in enumerate(delays_s):
        racers = [start(RACER, f"racer {each}") for each in range(4)]
        for racer in racers:
            racer.ask(f"round-{number}")
        (tmp_path / f"round-{number}").touch()
        threading.Event().wait(delay_s)
        for racer in racers[:3]:
            racer.popen.kill()
        out = [racer.answer() for racer in racers]
        assert "two at once" not in out and out.count("won") <= 4
        racers[3].kill()
    take(tmp_path)
